"""What stands for the layers of a decoder while its own forward pass runs one of them."""

from typing import Any

from torch import Tensor, nn

from harc.models.routers import NoRouterError


class Done(Exception):
    """Ends a forward pass. hidden: what the layer gave, or was given."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


class Skipped(nn.Module):
    """Stands for a layer that is not run; the forward pass may still ask for its attributes."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.__dict__["block"] = block

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["block"], name)

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """Hands its input on."""
        return hidden_states


class Given(Skipped):
    """Stands for a layer whose output is known."""

    def __init__(self, block: nn.Module, hidden: Tensor | None) -> None:
        super().__init__(block)
        self.__dict__["hidden"] = hidden

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The known output."""
        return self.__dict__["hidden"]


class Reached(Given):
    """The one layer that is run; its output (its input, where none is given) ends the forward pass."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Ends the forward pass.

        Raises:
            Done: always, but for
            NoRouterError: a layer that hands on more than hidden states.
        """
        if self.__dict__["hidden"] is None:
            raise Done(hidden_states)
        out = self.__dict__["block"](self.__dict__["hidden"], *args, **kwargs)
        if not isinstance(out, tuple):
            raise Done(out)
        if any(isinstance(extra, Tensor) for extra in out[1:]):
            raise NoRouterError(
                f"{type(self.__dict__['block']).__name__}: a layer hands the next one more than hidden states; "
                "such layers cannot be run one by one"
            )
        raise Done(out[0])
