"""Use your own system prompt, and an instruction for queries only.

python examples/own_prompt.py runs/own_prompt

The same from the command line (docs/extending.md shows how to keep a prompt as a choice):
  python -m grace_exp +experiment=demo prompt.name=keywords 'prompt.system="List the keywords of the text."'
"""

import sys
from pathlib import Path

import yaml

from grace_exp.config.compose import compose_config
from grace_exp.data.batch import Role
from grace_exp.data.prompts import PromptBuilder
from grace_exp.jobs import run
from grace_exp.policy.tiny import tiny_tokenizer

SYSTEM = "List the keywords of the text, the most telling first."
QUERY_INSTRUCTION = "The text is a question; list what its answer must contain."


def main(folder: Path, *overrides: str) -> str:
    """Train with the prompt; return the whole prompt of a query."""
    settings = [
        "+experiment=demo_tiny",  # a tiny random model; `demo` trains SmolLM2
        "prompt.name=keywords",
        f'prompt.system="{SYSTEM}"',
        f'prompt.instructions.query="{QUERY_INSTRUCTION}"',
        *overrides,
    ]
    config = compose_config(settings, folder)
    run(config)
    assert yaml.safe_load((folder / "config.yaml").read_text())["prompt"]["system"] == SYSTEM
    tokenizer = tiny_tokenizer()
    prompt = PromptBuilder(tokenizer, config.prompt)(Role.QUERY, "How do plants eat?")
    return tokenizer.decode(prompt.token_ids)


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), *sys.argv[2:]))
