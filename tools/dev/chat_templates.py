"""Renders chat templates with transformers, for tests/chat.rs.

    PEERS/venv/bin/python tools/dev/chat_templates.py PEERS [NAME]

writes fixtures/chat/templates.json: for each template of llama.cpp's models/templates and each conversation the SHA-256 of the text, or
null where transformers fails; the templates themselves are others' and stay there. And it fills in fixtures/chat/features.json, whose
templates were written for this project, each for a feature that real ones use. With NAME, the texts of that template are printed.
`tools/dev/peers full` installs transformers and llama.cpp's sources.
"""

import datetime
import hashlib
import json
import sys
from pathlib import Path

from transformers.utils import chat_template_utils

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "fixtures/chat"
NOW = datetime.datetime(2026, 3, 5, 7, 8, 9)
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


def turns(*contents):
    """A conversation that the user begins."""
    return [{"role": ["user", "assistant"][n % 2], "content": content} for n, content in enumerate(contents)]


def system(content, *contents):
    return [{"role": "system", "content": content}, *turns(*contents)]


CONVERSATIONS = {
    "question": turns(" Why is the sky blue?\n"),
    "system": system("You are brief.\n", "Why is \"the\" sky <blue> & 'wide'?"),
    "turns": turns("One?", "<think>\nhm\n</think>\n\nTwo. ", "Three, é 漢 😀?"),
    "long": system("Be exact.", "a\n\nb", "c", "d", " e ", "f"),
}


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


def rendered(template):
    """The text of each conversation."""
    texts = {}
    for name, messages in CONVERSATIONS.items():
        try:
            result, _ = chat_template_utils.render_jinja_template(
                [messages], chat_template=template, add_generation_prompt=True, **TOKENS
            )
            texts[name] = result[0]
        except Exception as error:
            print(f"  {name}: {type(error).__name__}: {error}", file=sys.stderr)
            texts[name] = None
    return texts


def digest(text):
    return None if text is None else hashlib.sha256(text.encode()).hexdigest()


def write(name, value):
    (FOLDER / name).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def main():
    chat_template_utils.datetime = Clock
    folder = Path(sys.argv[1]) / "llama.cpp/models/templates"
    # As Python reads text: line ends as \n.
    templates = {path.stem: path.read_text() for path in sorted(folder.glob("*.jinja"))}
    features = json.loads((FOLDER / "features.json").read_text())
    if len(sys.argv) > 2:
        template = templates.get(sys.argv[2]) or features["templates"][sys.argv[2]]["template"]
        print(json.dumps(rendered(template), indent=1, ensure_ascii=False))
        return
    common = {"now": NOW.isoformat(), "tokens": TOKENS, "conversations": CONVERSATIONS}
    found = {}
    for name, template in templates.items():
        print(name, file=sys.stderr)
        found[name] = {"sha256": digest(template), "texts": {key: digest(text) for key, text in rendered(template).items()}}
    write("templates.json", {**common, "templates": found})
    for name, entry in features["templates"].items():
        print(name, file=sys.stderr)
        entry["texts"] = rendered(entry["template"])
    write("features.json", {**common, "templates": features["templates"]})


main()
