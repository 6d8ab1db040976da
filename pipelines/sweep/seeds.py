"""`seeds=3`: the whole sweep under three seeds, as if the command line had said `seed=0,1,2`."""

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, open_dict


def sweep_seeds(config: DictConfig) -> None:
    """Puts a sweep over seeds in the place of `seeds` among the overrides of a sweep that is about to start.

    Beside a sweep over `seed` it stays as it is, and each cell refuses it (Hydra only warns of what a callback raises).

    Args:
        config: the composed configuration of the sweep, Hydra's part included; changed in place.
    """
    if config.seeds < 2:
        return
    words = [str(word) for word in config.hydra.overrides.task]
    parsed = OverridesParser.create().parse_overrides(words)
    own = dict(zip(words, parsed, strict=True))
    if any(one.key_or_group == "seed" and one.is_sweep_override() for one in parsed):
        return
    kept = [word for word in words if own[word].key_or_group not in ("seed", "seeds")]
    swept = ",".join(str(config.seed + number) for number in range(config.seeds))
    with open_dict(config):
        config.hydra.overrides.task = [*kept, f"seed={swept}"]
