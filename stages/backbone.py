"""Turn the language model that params name into the encoder folder models/backbone."""

from stm.stage import run_stage
from stm.backbone import build_backbone
from stm.params.backbone import BackboneParams
from stm.params.base import load_section


def main() -> None:
    """Run the stage."""
    build_backbone(load_section("backbone", BackboneParams), "models/backbone")


if __name__ == "__main__":
    run_stage(main)
