"""Networks of timm (PyTorch Image Models), with random first weights, the published ones, or those of a file."""

from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from torch import nn

from invbench.backbones._pretrained import Preparation, PretrainedBackbone, load_weights, read_weights
from invbench.core.data import Pixels
from invbench.core.registry import register_backbone
from invbench.core.settings import setting
from invbench.core.third_party import one_line
from invbench.errors import UserError
from invbench.system import workarounds

PUBLISHED = "model.safetensors"
"""Name of the file of weights in the repositories of timm's models."""


@register_backbone("timm")
class Timm(PretrainedBackbone):
    """A model of timm without its classifier, then dropout and a new linear head; needs the extra `timm`.

    All else is as in `torchvision`. A name may have the tag of published weights, as in `resnet50.a1_in1k`.
    """

    accepts: ClassVar[tuple[str, ...]] = ("image",)

    model: str = setting("resnet18", "name of a model of timm")

    def models(self) -> list[str]:
        timm = _timm()
        return [*timm.list_models(), *timm.list_models(pretrained=True)]

    def preparation(self) -> Preparation:
        expected = self._published()
        return Preparation(Pixels(tuple(expected.mean), tuple(expected.std)), expected.input_size[-1])

    def published_file(self) -> Path:
        from huggingface_hub import hf_hub_download, logging, try_to_load_from_cache

        repository = self._published().hf_hub_id
        if not repository:
            raise UserError(f"timm publishes no weights of {self.model} on the Hugging Face Hub; give a file's path")
        kept = try_to_load_from_cache(repository, PUBLISHED)
        if isinstance(kept, str):
            return Path(kept)
        logging.set_verbosity_error()  # a line for each of its attempts says no more than the last
        try:
            return Path(hf_hub_download(repository, PUBLISHED))
        except Exception as error:  # of several packages below it, and long
            raise UserError(
                f"the published weights of {self.model} are not here and cannot be downloaded "
                f"({type(error).__name__}); set backbone.weights to the path of a copy of "
                f"https://huggingface.co/{repository}/resolve/main/{PUBLISHED}"
            ) from None

    def network(self, shape: tuple[int, int], file: Path | None) -> nn.Module:
        timm, expected = _timm(), self._published()
        sizes: dict[str, Any] = {"img_size": shape} if expected.fixed_input_size else {}
        network: nn.Module
        if self.weights == "default":  # timm converts what its authors have published, and raises where it does not fit
            here = {"file": str(file), "custom_load": False}
            network = timm.create_model(self.model, pretrained=True, pretrained_cfg_overlay=here, **sizes)
            network.reset_classifier(0)  # type: ignore[operator]
            return network
        network = timm.create_model(self.model, num_classes=0, **sizes)
        if file is not None:
            heads = expected.classifier or ()
            heads = (heads,) if isinstance(heads, str) else heads
            state = read_weights(file, network)
            body = {k: v for k, v in state.items() if not k.startswith(tuple(f"{head}." for head in heads))}
            load_weights(network, body, self.model, file)
        return network

    def _published(self) -> Any:
        return _timm().get_pretrained_cfg(self.model)


@cache
def _timm() -> ModuleType:
    """Import timm, on first use, and return it. Raises UserError where it is not installed."""
    workarounds.torchvision()
    try:
        import timm
    except ModuleNotFoundError as error:
        raise UserError(
            f"backbone timm needs a package that is missing ({one_line(error)}): pip install 'invbench[timm]'"
        ) from None
    return timm
