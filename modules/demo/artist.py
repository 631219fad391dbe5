"""A checkpoint that draws for reports and comparisons: the pipeline's own spine, without queue and files."""
from __future__ import annotations

from dataclasses import replace

from PIL import Image

from modules.checkpoints.residency import Residency
from modules.checkpoints.shelf import Shelf
from modules.core import hardware
from modules.core.progress import Progress
from modules.core.settings import Settings
from modules.imaging import convert
from modules.pipeline import latents
from modules.pipeline.generate import generate
from modules.pipeline.request import Request, Resources
from modules.prompts.encode import EncodeCache
from modules.prompts.tokens import Tokenizer
from modules.sampling import catalogue


class Artist:
    """One checkpoint of the shelf. request: what all pictures share; it names a checkpoint and a size."""

    def __init__(self, shelf: Shelf, tokenizer: Tokenizer, request: Request) -> None:
        self._request = replace(request, vae=request.vae or "Automatic", subseed=0)
        device = hardware.device()
        self._resources = Resources(
            settings=Settings(), models=Residency(shelf, device, hardware.dtype(device)), adapters=None, upscalers=None, styles={},
            tokenizer=tokenizer, encodings=EncodeCache(), extensions=(), progress=Progress(), done=frozenset(), deliver=lambda one: one)

    def draw(self, prompt: str, seed: int) -> Image.Image:
        """The picture of these words, RGB. Raises a WebUIError."""
        return self.picture(replace(self._request, prompt=prompt, seed=seed))

    def picture(self, request: Request) -> Image.Image:
        """The first picture of a request of one's own, RGB. Raises a WebUIError."""
        sampler, scheduler = catalogue.resolve(request.sampler, request.scheduler)
        wanted = replace(request, sampler=sampler, scheduler=scheduler, vae=request.vae or self._request.vae, subseed=0)
        return generate(wanted, self._resources).pictures[0].image

    def there_and_back(self, image: Image.Image) -> Image.Image:
        """What the VAE makes of a picture: encoded (the mean of what it could be) and decoded."""
        with self._resources.models.borrow(self._request.checkpoint, self._request.vae) as model, model.at_work(model.vae):
            return convert.to_images(latents.decode(model, latents.encode(model, convert.to_pixels(image))))[0]
