"""The project's Dockerfile as Docker reads it: its stages and their steps."""

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

DOCKERFILE = Path(__file__).resolve().parents[1] / "Dockerfile"


@dataclass
class Stage:
    image: str
    steps: list[tuple[str, str]] = field(default_factory=list)
    """(instruction, the rest), continued lines joined."""

    def of(self, instruction: str) -> list[str]:
        return [rest for name, rest in self.steps if name == instruction]


def stages() -> dict[str, Stage]:
    """The stages of the Dockerfile by name, each with the steps of the one it is built on."""
    text = DOCKERFILE.read_text(encoding="utf-8")
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    found: dict[str, Stage] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            image, name = rest.split(" AS ")
            stage = found[name] = Stage(image)
            if image in found:
                stage.image = found[image].image
                stage.steps += found[image].steps
        else:
            stage.steps.append((instruction, " ".join(rest.split())))
    return found


def environment(stage: Stage) -> dict[str, str]:
    words = [word for rest in stage.of("ENV") for word in shlex.split(rest)]
    return dict(word.split("=", 1) for word in words)
