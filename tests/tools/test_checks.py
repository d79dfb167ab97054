"""The checks of tools/ accept what is right and catch each kind of violation."""
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

TOOLS = pathlib.Path(__file__).resolve().parents[2] / "tools"


class ToolTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.root = pathlib.Path(self.folder.name)

    def tearDown(self):
        self.folder.cleanup()

    def write(self, path, text):
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(text if isinstance(text, bytes) else text.encode())

    def run_tool(self, name, *options):
        done = subprocess.run([sys.executable, str(TOOLS / name), "--root", str(self.root), *options],
                              capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    def expect(self, name, code, *parts, options=()):
        got, output = self.run_tool(name, *options)
        self.assertEqual(got, code, output)
        for part in parts:
            self.assertIn(part, output)
        return output


class Layers(ToolTest):
    def test_accepts_the_flow(self):
        self.write("switchyard/core/error.hpp", "#pragma once\n#include <string>\n")
        self.write("switchyard/model/decoder.hpp",
                   '#include "switchyard/data/batch.hpp"\n#include "switchyard/router/router.hpp"\n#include "sqlite3.h"\n')
        self.expect("check_layers.py", 0, "2 folders, 0 includes")

    def test_catches_an_include_to_the_right(self):
        self.write("switchyard/router/router.hpp", '#pragma once\n#  include "switchyard/balance/step_balance.hpp"\n')
        self.expect("check_layers.py", 1, "switchyard/router/router.hpp:2:", "router may include core, kernels")

    def test_catches_a_header_beyond_the_agreed_one(self):
        self.write("switchyard/model/decoder.cpp", '#include "switchyard/data/batcher.hpp"\n')
        self.expect("check_layers.py", 1, "of data, model may include batch.hpp")

    def test_catches_a_path_that_is_not_from_the_root(self):
        self.write("switchyard/core/a.hpp", "#pragma once\n")
        self.write("switchyard/core/b.cpp", '#include "a.hpp"\n')
        self.write("switchyard/comm/c.cpp", '#include "../core/a.hpp"\n')
        self.expect("check_layers.py", 1, "switchyard/core/b.cpp:1:", "switchyard/comm/c.cpp:1:", "2 includes")

    def test_catches_a_folder_without_a_rule(self):
        self.write("switchyard/extras/a.hpp", "#pragma once\n")
        self.expect("check_layers.py", 1, "switchyard/extras: not in the table")

    def test_fails_without_anything_to_check(self):
        self.expect("check_layers.py", 1, "has no folder switchyard")


class Style(ToolTest):
    def setUp(self):
        super().setUp()
        self.write("switchyard/core/good.hpp", '#pragma once\n// printf() in words\ninline const char* kText = "exit(1)";\n')

    def test_accepts_good_files(self):
        self.write("docs/page.md", "Not only ASCII: \u00e9\n")
        self.write("switchyard/cli/main.cpp", "int main() { std::cout << 1; }\n")
        self.expect("check_style.py", 0, "3 files, 0 complaints, 0 warnings")

    def test_catches_each_violation(self):
        cases = {
            "switchyard/core/a.cpp": ("// caf\u00e9\n", "not ASCII"),
            "switchyard/core/CMakeLists.txt": ("# caf\u00e9\n", "not ASCII"),
            "switchyard/core/b.hpp": ("#pragma once\nusing namespace std;\n", "using namespace in a header"),
            "switchyard/core/c.hpp": ("int x;\n", "no #pragma once"),
            "tests/core/d.cpp": ("#include <torch/" + "torch.h>\n", "costs seconds"),
            "bench/e.cpp": ("#include <ATen/" + "ATen.h>\n", "costs seconds"),
            "configs/f.toml": ('data = "' + "/ro" + 'ot/data"\n', "a path of one machine"),
            "docs/g.md": ("see `" + "/wo" + "rk/main/x`\n", "a path of one machine"),
            "tests/core/h.cpp": ("GTEST_" + "SKIP();\n", "a test that is skipped"),
            "tests/core/i.cpp": ("TEST(A, DISAB" + "LED_b) {}\n", "a test that is skipped"),
            "tests/python/j.py": ("@pytest.mark." + "skip\n", "a test that is skipped"),
            "switchyard/core/k.cpp": ("void f() { std::cerr << 1; }\n", "prints or exits"),
            "switchyard/core/l.cpp": ("void f() { exit(1); }\n", "prints or exits"),
            "docs/m.md": (b"\xff\n", "not UTF-8 at byte 0"),
        }
        for path, (text, part) in cases.items():
            with self.subTest(path):
                self.write(path, text)
                self.expect("check_style.py", 1, path, part, "1 complaints")
                (self.root / path).unlink()

    def test_warns_of_long_files(self):
        self.write("switchyard/core/long.cpp", "\n" * 401)
        self.write("tests/core/long.cpp", "\n" * 500)
        self.expect("check_style.py", 0, "warning: switchyard/core/long.cpp: 401 lines", "1 warnings")
        self.expect("check_style.py", 1, "switchyard/core/long.cpp: 401 lines", options=["--strict"])

    def test_fails_without_anything_to_check(self):
        shutil.rmtree(self.root / "switchyard")
        self.expect("check_style.py", 1, "0 files")


class Headers(ToolTest):
    def setUp(self):
        super().setUp()
        command = {"directory": str(self.root), "file": str(self.root / "switchyard/core/a.cpp"),
                   "command": f"c++ -std=c++20 -Wall -Werror -include absent.hpp -o a.o -c {self.root}/switchyard/core/a.cpp"}
        self.write("build/compile_commands.json", json.dumps([command]))
        self.options = ["--build", str(self.root / "build")]
        self.write("switchyard/core/base.hpp", "#pragma once\n#include <cstdint>\n")

    def test_catches_a_header_that_leans_on_others(self):
        self.write("switchyard/core/leaning.hpp", "#pragma once\ninline std::size_t f() { return 1; }\n")
        self.expect("check_headers.py", 1, "switchyard/core/leaning.hpp: does not compile alone", "1 failed",
                    options=self.options)
        # A failure is not remembered as checked.
        self.expect("check_headers.py", 1, "2 headers, 1 compiled, 1 failed", options=self.options)

    def test_catches_a_header_that_cannot_be_included_twice(self):
        self.write("switchyard/core/once.hpp", "struct Once {};\n")
        self.expect("check_headers.py", 1, "once.hpp: does not compile alone", options=self.options)

    def test_compiles_again_only_after_a_change(self):
        self.write("switchyard/core/user.hpp", '#pragma once\n#include "switchyard/core/base.hpp"\n')
        self.expect("check_headers.py", 0, "2 headers, 2 compiled, 0 failed", options=self.options)
        self.expect("check_headers.py", 0, "2 headers, 0 compiled, 0 failed", options=self.options)
        self.write("switchyard/core/base.hpp", "#pragma once\n#include <cstddef>\n")
        self.expect("check_headers.py", 0, "2 headers, 2 compiled, 0 failed", options=self.options)

    def test_asks_for_a_configured_build(self):
        self.write("build/compile_commands.json", "[]")
        self.expect("check_headers.py", 1, "configure first", options=self.options)


if __name__ == "__main__":
    unittest.main()
