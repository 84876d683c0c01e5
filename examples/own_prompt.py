"""Ask the model for something else: a system prompt of your own, and an instruction for queries alone.

python examples/own_prompt.py runs/own_prompt

The same from the command line (a file conf/prompt/<name>.yaml keeps a prompt for good):
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
    """Trains with the prompt; returns what the model reads for a query."""
    settings = [
        "+experiment=demo_tiny",  # a made-up model; `demo` trains SmolLM2
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
