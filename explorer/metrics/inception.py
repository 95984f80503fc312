"""Inception-v3 with the weights of FID: found or fetched, checked, and turned into a feature space.

The file is a list of 472 tensors, ported from the TensorFlow graph of 2015-12-05; it is not part of this package. It is read as
tensors and nothing else. The port that NVIDIA's code loads is a TorchScript program or a pickle with source text: reading either
would run what is in it, so both are refused; the weights in them are those of the same graph.
"""

from __future__ import annotations

import os
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from explorer.errors import BadFile, UnknownName
from explorer.files import sha256, write_atomic
from explorer.metrics.features import FeatureSpace, weights_hash
from explorer.metrics.protocols import Protocol
from explorer.nets.inception import LAYERS, Inception

FILE = "pt_inception-2015-12-05-6726825d.pth"
ADDRESS = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
N_BYTES = 95_628_359
ALSO = ("weights-inception-2015-12-05-6726825d.pth",)
"""The same file under the name torch-fidelity gives it."""

MAX_BYTES = 2**30
BOOKKEEPING = ".num_batches_tracked"


@dataclass(frozen=True)
class Weights:
    """A network that has been read.

    Attributes:
        hash: first 16 hex digits of the SHA-256 of its tensors.
        published: the file is the published one, byte for byte; only then are its distances called FID.
    """

    network: Inception
    hash: str
    published: bool

    @property
    def prefix(self) -> str:
        """First part of the names of its feature spaces."""
        return "inception-v3" if self.published else f"inception-v3~{self.hash[:8]}"

    def space(self, of: Protocol, layer: str = "2048", *, batch: int = 64) -> FeatureSpace:
        """Features under a protocol.

        Args:
            layer: one of `explorer.nets.inception.LAYERS`.
            batch: pictures passed through the network at once; 299 x 299 pixels are large.
        """
        if layer not in LAYERS:
            raise UnknownName("layer of Inception-v3", layer, LAYERS)
        like = self.network.fc.weight

        def fn(samples: Tensor) -> Tensor:
            pieces = [of.prepare(piece.to(like.device)).to(like.dtype) for piece in samples.split(batch)]
            return torch.cat([self.network(piece, (layer,))[layer] for piece in pieces])

        name = of.space_name.replace("inception-v3", self.prefix) + ("" if layer == "2048" else f"#{layer}")
        return FeatureSpace(name, LAYERS[layer], fn, self.hash)


def random_weights(seed: int = 0) -> Weights:
    """The network with random weights: for tests and pictures, never for a number that is to mean something."""
    network = Inception().randomise_(seed)
    return Weights(network, weights_hash(network), False)


def find_weights(file: str | os.PathLike | None = None) -> Path:
    """The weights file: the one given, or $EXPLORER_INCEPTION, or one in the cache folder, or in torch's own.

    Raises:
        BadFile: there is none, with the places that were looked at.
    """
    given = file or os.environ.get("EXPLORER_INCEPTION")
    if given:
        if not Path(given).is_file():
            raise BadFile(f"there is no file {str(given)!r} with the weights of Inception-v3.")
        return Path(given)
    places = [folder / name for folder in (cache_folder(), _torch_cache()) for name in (FILE, *ALSO)]
    for place in places:
        if place.is_file():
            return place
    raise BadFile(
        f"FID needs the weights of Inception-v3, a file of {N_BYTES / 1e6:.0f} MB that is not here. Give it as --inception FILE or in "
        f"EXPLORER_INCEPTION, put it into {cache_folder()} as {FILE}, or fetch it with --inception fetch, from {ADDRESS}. Without it, "
        "--features digits-cnn or pixels measures the same way in a space of its own."
    )


def cache_folder() -> Path:
    """EXPLORER_CACHE, or ~/.cache/trajectory-explorer."""
    return Path(os.environ.get("EXPLORER_CACHE") or Path.home() / ".cache" / "trajectory-explorer")


def _torch_cache() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def fetch_weights(address: str = ADDRESS, *, timeout: float = 30.0) -> Path:
    """Fetch the published file into the cache folder, unless it is there, and return its path.

    Raises:
        BadFile: no way to the internet, or what came is not the published file; nothing is kept then.
    """
    target = cache_folder() / FILE
    if target.is_file() and sha256(target) == SHA256:
        return target

    def write(partial: Path) -> None:
        with urllib.request.urlopen(address, timeout=timeout) as answer, open(partial, "wb") as out:
            left = N_BYTES + 1
            while left > 0 and (piece := answer.read(min(2**20, left))):
                out.write(piece)
                left -= len(piece)
        found = sha256(partial)
        if found != SHA256:
            raise BadFile(
                f"what came from {address} is not the published file: SHA-256 {found[:16]}... where {SHA256[:16]}... was expected "
                f"({N_BYTES + 1 - left} of {N_BYTES} bytes). Nothing was kept."
            )

    try:
        write_atomic(target, write)
    except BadFile as error:
        reason = error.__cause__
        if isinstance(reason, BadFile):
            raise reason from None
        if isinstance(reason, urllib.error.URLError | TimeoutError | ConnectionError):
            raise BadFile(
                f"{address} cannot be reached from here ({getattr(reason, 'reason', reason)}). Fetch the file on a machine that can, and "
                "give it as --inception FILE."
            ) from None
        raise
    return target


def load_inception(file: str | os.PathLike | None = None, device: torch.device | str = "cpu") -> Weights:
    """Inception-v3 with the weights of a file; see `find_weights` for where it is looked for.

    Args:
        file: the published .pth, or the same tensors as .safetensors.
    Raises:
        BadFile: missing, truncated, not a list of tensors, or of another network; the message says which.
    """
    path = find_weights(file)
    tensors = _tensors(path)
    with torch.device("meta"):
        network = Inception()
    expected = network.state_dict()
    _compare(path, tensors, expected)
    counts = {name: torch.zeros((), dtype=torch.int64) for name in expected if name.endswith(BOOKKEEPING)}
    network.load_state_dict({**counts, **{k: v.float() for k, v in tensors.items() if k in expected}}, assign=True)
    network.requires_grad_(False)
    return Weights(network.to(device), weights_hash(network), sha256(path) == SHA256)


def _tensors(path: Path) -> dict[str, Tensor]:
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise BadFile(f"{path} has {size} bytes; the weights of Inception-v3 have {N_BYTES}.")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise BadFile(f"{path} is not in safetensors format: {error}.") from None
    _refuse_programs(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file fails in many ways; none was let run
        reason = str(error).strip().splitlines() or [type(error).__name__]
        cut = f" It has {size} of {N_BYTES} bytes." if size < N_BYTES else ""
        raise BadFile(f"{path} cannot be read as tensors: {reason[0][:160]}.{cut} Nothing in it was run.") from None
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise BadFile(f"{path} holds a {type(content).__name__} where the weights are tensors by name.")
    return content


def _refuse_programs(path: Path) -> None:
    """Raises BadFile for NVIDIA's two files of these weights, which are programs."""
    advice = f"Give the tensors alone: {FILE} (see {ADDRESS})."
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise BadFile(f"{path} is a damaged archive: {error}.") from None
        if any("/code/" in name or name.endswith("constants.pkl") for name in names):
            raise BadFile(
                f"{path} is a TorchScript program; loading it would run code from the file, so it was not. {advice}"
            )
        return
    with open(path, "rb") as stream:
        head = stream.read(4096)
    if b"_reconstruct_persistent_obj" in head or b"module_src" in head:
        raise BadFile(f"{path} is a pickle that carries its own source text and asks to run it; it was not. {advice}")


def _compare(path: Path, tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    wanted = {name for name in expected if not name.endswith(BOOKKEEPING)}
    if "AuxLogits.fc.weight" in tensors:
        raise BadFile(
            f"{path} holds another Inception-v3, trained with an auxiliary head as image libraries ship it; its features are not those of "
            f"FID. The file is {FILE}."
        )
    found = {name for name in tensors if not name.endswith(BOOKKEEPING)}
    missing, extra = sorted(wanted - found), sorted(found - wanted)
    if missing or extra:
        named = [
            f"{len(n)} {word} ({', '.join(n[:3])}...)" for n, word in ((missing, "missing"), (extra, "unknown")) if n
        ]
        raise BadFile(f"{path} does not hold the {len(wanted)} tensors of FID's Inception-v3: {', '.join(named)}.")
    for name in sorted(wanted):
        value, shape = tensors[name], tuple(expected[name].shape)
        if tuple(value.shape) != shape or not value.is_floating_point():
            raise BadFile(f"{path}: {name} is {value.dtype} {tuple(value.shape)}, expected numbers {shape}.")
        if not torch.isfinite(value).all():
            raise BadFile(f"{path}: {name} holds NaN or infinity.")
