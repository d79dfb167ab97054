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

    def test_does_not_borrow_the_flags_of_another_folder(self):
        # A unity build compiles no source of its own name.
        self.write("switchyard/comm/solo.hpp", "#pragma once\n")
        self.expect("check_headers.py", 1, "no source of switchyard/comm", options=self.options)


# Stands in for clang-tidy: a finding for each BAD; a file that includes two with CLASH does not compile.
FAKE_TIDY = """#!/usr/bin/env python3
import re, sys
if "--version" in sys.argv:
    print("fake 1")
    sys.exit(0)
main = sys.argv[sys.argv.index("--") - 1]
text = open(main).read()
files = re.findall(r'#include "(/.*[.]cpp)"', text) or [main]
print("read", len(files), file=sys.stderr)
if sum("CLASH" in open(file).read() for file in files) > 1:
    print(main + ":1:1: error: redefinition of 'x' [clang-diagnostic-error]")
    sys.exit(1)
bad = [file for file in files if "BAD" in open(file).read()]
for file in bad:
    print(file + ":1:1: error: this is bad [bugprone-bad,-warnings-as-errors]")
sys.exit(1 if bad else 0)
"""


class Tidy(ToolTest):
    def setUp(self):
        super().setUp()
        self.write("tidy", FAKE_TIDY)
        (self.root / "tidy").chmod(0o755)
        self.write(".clang-tidy", "Checks: '*'\n")
        self.options = ["--build", str(self.root / "build"), "--clang-tidy", str(self.root / "tidy")]
        self.commands = []

    def source(self, path, text, flags=""):
        self.write(path, text)
        file = str(self.root / path)
        self.commands.append({"directory": str(self.root), "file": file, "command": f"c++ {flags} -c {file}"})
        self.write("build/compile_commands.json", json.dumps(self.commands))

    def test_reads_together_what_does_not_clash(self):
        self.source("switchyard/core/a.cpp", "namespace {\nint count(int x) { return x; }\n}\n")
        self.source("switchyard/core/b.cpp", "namespace {\nint sum(int x) { return x; }\n}\n")
        self.source("switchyard/core/c.cpp", "namespace {\nconst int count = 3;\n}\n")
        self.source("switchyard/core/d.cpp", "int d;\n", flags="-DOTHER")
        self.source("switchyard/comm/e.cpp", "int e;\n")
        self.expect("check_tidy.py", 0, "5 sources, 5 read in 4 batches, 0 findings", options=self.options)

    def test_reads_one_by_one_what_does_not_compile_together(self):
        self.source("switchyard/core/a.cpp", "// CLASH\n")
        self.source("switchyard/core/b.cpp", "// CLASH\n")
        self.expect("check_tidy.py", 0, "2 read in 1 batches, 0 findings", options=self.options)
        self.source("switchyard/core/b.cpp", "// CLASH BAD\n")
        self.expect("check_tidy.py", 1, "core/b.cpp:1:1: error: this is bad", "1 findings", options=self.options)

    def test_reads_again_only_what_changed_or_failed(self):
        self.write("switchyard/core/a.hpp", "#pragma once\n")
        self.source("switchyard/core/a.cpp", '#include "switchyard/core/a.hpp"\n')
        self.source("switchyard/comm/b.cpp", "// BAD\n")
        self.expect("check_tidy.py", 1, "2 sources, 2 read", "1 findings", options=self.options)
        self.expect("check_tidy.py", 1, "2 sources, 1 read", "1 findings", options=self.options)
        self.write("switchyard/comm/b.cpp", "// good\n")
        self.write("switchyard/core/a.hpp", "#pragma once\n// changed\n")
        self.expect("check_tidy.py", 0, "2 sources, 2 read", options=self.options)
        self.write(".clang-tidy", "Checks: 'bugprone-*'\n")
        self.expect("check_tidy.py", 0, "2 sources, 2 read", options=self.options)

    def test_asks_for_a_configured_build(self):
        self.write("build/compile_commands.json", "[]")
        self.expect("check_tidy.py", 1, "configure first", options=self.options)


if __name__ == "__main__":
    unittest.main()
