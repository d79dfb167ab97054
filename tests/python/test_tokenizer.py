"""transformers.AutoTokenizer reads our tokenizer.json and gives the ids and the text that our own tokenizer gives."""

import json
import os
import pathlib
import random
import subprocess

import pytest
from transformers import AutoTokenizer

TOOL = pathlib.Path(os.environ["SWITCHYARD_BUILD_DIR"]) / "tests/data/data_tool"
SPACE_MARK = "\u2581"
ESCAPE = "\U0010f581"
SPECIAL = " \n\t\r\x00-=aeA01" + SPACE_MARK + ESCAPE + "\u3042\u4e00\u0416\u00e9\ufffd\ufeff\u2585\U0001f600\U0010ffff"
NASTY = [
    "", " ", "   ", " leading", "trailing  ", "\n", "\n\n\n", " \n \n", "\r\n", "\x00", "a\x00b\n\n\t x", "\t\t\tif x:\n\t\t\t\treturn",
    SPACE_MARK, SPACE_MARK + " " + SPACE_MARK + "a", SPACE_MARK * 50, ESCAPE, ESCAPE + "0 " + SPACE_MARK + "1" + ESCAPE + "1",
    "<s></s><unk>\n<0x41>", "</s>", "<|endoftext|>", "e\u0301 \u00e9 \ufb01", "\U0001f469\u200d\U0001f680", "\u2585" + SPACE_MARK + "\ufffd\ufeff",
    "a" * 3000, "-" * 1000, "=" * 777 + " " * 555, "ab" * 500, " a" * 400, "\u65e5\u672c\u8a9e \u30c6\u30ad\u30b9\u30c8",
    "x" * 5 + "\n" + " " * 64 + "y", "\u00a0\u3000\u2028\u2029",
]


def run_tool(*words, lines=()):
    text = "".join(json.dumps(line) + "\n" for line in lines)
    result = subprocess.run([TOOL, *map(str, words)], input=text, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.split("\n")[:-1]]


def real_text():
    """Code that every Python has."""
    return [path.read_text() for path in sorted(pathlib.Path(os.__file__).parent.glob("[a-c]*.py"))]


def foreign_text(seed):
    """Made-up words in four scripts, with words that come again, so that pieces of several characters are learned."""
    draw = random.Random(seed)
    alphabets = ["\u3042\u3044\u3046\u3048\u304a\u65e5\u672c\u8a9e\u3002", "\u0430\u0431\u0432\u0433\u0434\u0435\u0436", "\u03b1\u03b2\u03b3\u03b4", "e\u00e9\u00e8\u00fc\u00df"]
    words = ["".join(draw.choices(alphabet, k=draw.randint(1, 4))) for alphabet in alphabets for _ in range(300)]
    return "".join(draw.choice(words) + draw.choice([" ", " ", " ", "\n", "", SPACE_MARK, "  ", "\n\n    "]) for _ in range(3000))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    source = tmp_path_factory.mktemp("source")
    for name, texts in {"code": real_text(), "foreign": [foreign_text(seed) for seed in range(20)]}.items():
        (source / name).mkdir()
        for number, text in enumerate(texts):
            (source / name / f"{number:03}.txt").write_bytes(text.encode())
    folder = tmp_path_factory.mktemp("built") / "set"
    run_tool("build", folder, source)
    return folder


@pytest.fixture(scope="module")
def theirs(dataset):
    return AutoTokenizer.from_pretrained(dataset)


def check_same(dataset, theirs, texts):
    ids = run_tool("encode", dataset / "tokenizer.model", lines=texts)
    decoded = run_tool("decode", dataset / "tokenizer.model", lines=ids)
    for text, ours, back in zip(texts, ids, decoded, strict=True):
        assert back == text
        assert theirs(text)["input_ids"] == ours, repr(text[:200])
        assert theirs.decode(ours) == text


def test_learned_pieces_of_several_characters(dataset, theirs):
    assert len(theirs) == 8192
    (ids,) = run_tool("encode", dataset / "tokenizer.model", lines=["    def __init__(self):\n        return None\n"])
    assert len(ids) < 16


def test_special_ids(theirs):
    assert (theirs.unk_token_id, theirs.bos_token_id, theirs.eos_token_id) == (0, 1, 2)
    assert theirs.decode([1, 3, 2], skip_special_tokens=True) == "\n"


def test_nasty_text(dataset, theirs):
    check_same(dataset, theirs, NASTY)


def test_random_text(dataset, theirs):
    draw = random.Random(1)
    texts = ["".join(draw.choices(SPECIAL, k=draw.randint(1, 60))) for _ in range(500)]
    texts += ["".join(draw.choices(" \n-=ae01" + SPACE_MARK + ESCAPE, k=draw.randint(1, 200))) for _ in range(500)]
    check_same(dataset, theirs, texts)


def test_real_text(dataset, theirs):
    check_same(dataset, theirs, [text[:20000] for text in real_text()[:20]] + [foreign_text(seed) for seed in range(100, 110)])


def test_a_saved_copy_is_the_same(dataset, theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    check_same(dataset, AutoTokenizer.from_pretrained(tmp_path), NASTY)
