"""Tiny checkpoints that can do a little of their task already: made once, kept in a cache folder, ready for RL."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import string
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.models.practice import OneTurn, Practice, Processor, Recipe, sampler
from components.models.warm_start import Lesson, warm_start
from slime_launch.errors import ComponentError
from slime_launch.interfaces import Closes, DataSource, Needs, Provides, Reward, SingleReward
from slime_launch.targets import find_targets, instantiate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


CHARACTERS = tuple(sorted(set(string.printable) - set("\t\r\x0b\x0c")))
"""Newline and the 95 printable ASCII characters; any other character is an error of the tokenizer, never a guess."""
MANIFEST = "manifest.json"
LIBRARIES = ("torch", "transformers", "tokenizers")


def build_tokenizer(
    special: Sequence[str], words: Sequence[str], eos: str, pad: str, chat_template: str
) -> PreTrainedTokenizerFast:
    """One token a character, after the ``special`` tokens (ids from 0) and the ``words`` that count as one token."""
    from tokenizers import AddedToken, Regex, Tokenizer
    from tokenizers.decoders import Fuse
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from transformers import PreTrainedTokenizerFast

    vocab = {token: i for i, token in enumerate((*special, *words, *CHARACTERS))}
    tokenizer = Tokenizer(WordLevel(vocab))
    tokenizer.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = Fuse()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    tokenizer.add_tokens([AddedToken(word, normalized=False, special=False) for word in words])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=eos,
        pad_token=pad,
        padding_side="left",
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def cache_root() -> Path:
    """The folder that checkpoints are kept in: ``$XDG_CACHE_HOME/slime_launch``, else ``~/.cache/slime_launch``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slime_launch"


def _key(args: Mapping[str, Any]) -> str:
    """Hash of what determines the weights: arguments, sources of what they name, versions of the libraries."""
    digest = hashlib.sha256(json.dumps(args, sort_keys=True).encode())
    for library in LIBRARIES:
        digest.update(f"{library}={version(library)}\n".encode())
    for file in _sources(args):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _sources(args: Mapping[str, Any]) -> Iterator[Path]:
    """This code, and the module of each target with the tiny JSON files of its ``configs`` folder."""
    here = Path(__file__).parent
    yield from (here / "tiny.py", here / "practice.py", here / "warm_start.py", here / "recipes.py")
    for key, target in find_targets(args):
        spec = importlib.util.find_spec(str(target).rpartition(".")[0])
        if spec is None or spec.origin is None:
            raise ComponentError(f"model.tiny.{key}={target}: no such module")
        yield Path(spec.origin)
        yield from sorted(Path(spec.origin).parent.glob("configs/tiny*.json"))


class TinyCheckpoint:
    """Makes the checkpoint that a small run starts from, unless the cache has it already.

    folder: where it goes. A checkpoint there that was made from other arguments, or is broken, is made again.
    recipe, data, reward: ``_target_`` nodes of the family's Recipe, the DataSource (which also gets ``seed``) and the
        Reward that scores it.
    practice: ``_target_`` node of a Practice, which also gets ``sampler`` and ``hf_checkpoint``; null: one turn.
    lesson: see Lesson: the supervised steps stop when the sampled score is within its band.
    threads: torch threads; part of the cache's key, since sums depend on it.
    """

    def __init__(
        self,
        folder: str,
        recipe: Mapping[str, Any],
        data: Mapping[str, Any],
        reward: Mapping[str, Any],
        seed: int,
        threads: int = 1,
        practice: Mapping[str, Any] | None = None,
        **lesson: Any,
    ) -> None:
        self._folder = Path(folder)
        self._recipe, self._data, self._reward, self._practice = recipe, data, reward, practice
        self._seed, self._threads = seed, threads
        try:
            self._lesson = Lesson(**lesson)
        except TypeError as error:
            raise ComponentError(f"tiny checkpoint: {error}") from error
        nodes = {"recipe": recipe, "data": data, "reward": reward, "practice": practice}
        self._args: dict[str, Any] = {**nodes, "seed": seed, "threads": threads, **lesson}

    @classmethod
    def write_stand_in(cls, args: Mapping[str, Any], folder: str) -> None:
        """The checkpoint's random beginning: the same shape and tokenizer, nothing learnt."""
        recipe: Recipe = instantiate(args["recipe"])
        recipe.write(Path(folder), args["seed"])

    def start(self, needs: Needs) -> Provides:
        """Make the checkpoint, or find it. Returns ``hf_checkpoint``, its folder.

        Raises ComponentError when the score cannot be brought into its band, or the folder holds something else.
        """
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self._folder.with_name(self._folder.name + ".lock")):
            if _intact(self._folder, _key(self._args)):
                print(f"tiny checkpoint: found {self._folder}", flush=True)
            else:
                self._refuse_foreign()
                self._make()
        return {"hf_checkpoint": str(self._folder)}

    def failure(self) -> str | None:
        """Nothing runs after ``start``."""
        return None

    def stop(self) -> None:
        """Nothing to give back."""

    def _refuse_foreign(self) -> None:
        ours = self._folder.parent == cache_root() or (self._folder / MANIFEST).is_file()
        if self._folder.exists() and not ours:
            raise ComponentError(f"tiny checkpoint: {self._folder} is not one; name another folder or delete it")

    def _make(self) -> None:
        began = time.monotonic()
        scratch = Path(tempfile.mkdtemp(prefix=self._folder.name + ".", dir=self._folder.parent))
        try:
            facts = self._train(scratch)
            _write_manifest(scratch, {"key": _key(self._args), "args": self._args, **facts})
            shutil.rmtree(self._folder, ignore_errors=True)
            scratch.rename(self._folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        print(f"tiny checkpoint: made {self._folder} in {time.monotonic() - began:.0f} s", flush=True)

    def _train(self, folder: Path) -> dict[str, Any]:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        import torch
        from transformers import AutoConfig, AutoProcessor

        recipe: Recipe = instantiate(self._recipe)
        source: DataSource = instantiate(self._data, seed=self._seed)
        reward: Reward | SingleReward = instantiate(self._reward)
        threads = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self._seed)
                recipe.write(folder, self._seed)
                architecture = AutoConfig.from_pretrained(folder).architectures[0]
                model = _model_class(architecture).from_pretrained(folder)
                processor = AutoProcessor.from_pretrained(folder)
                practice = self._build_practice(model, processor, folder)
                outcome = warm_start(recipe, model, processor, practice, source, reward, self._lesson, self._seed)
                model.save_pretrained(folder)
        finally:
            torch.set_num_threads(threads)
            if isinstance(reward, Closes):
                asyncio.run(reward.close())
        return {"steps": outcome.steps, "score": outcome.score}

    def _build_practice(self, model: PreTrainedModel, processor: Processor, folder: Path) -> Practice:
        if self._practice is None:
            return OneTurn(model, processor)
        made: Practice = instantiate(self._practice, sampler=sampler(model, processor), hf_checkpoint=str(folder))
        return made


def _model_class(architecture: str) -> type[PreTrainedModel]:
    import transformers

    return getattr(transformers, architecture)  # type: ignore[no-any-return]


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold an exclusive lock; the system drops it when the process ends in whatever way."""
    with file.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"tiny checkpoint: another run is making it, waiting for {file}", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _file_hashes(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.iterdir() if file.name != MANIFEST)
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def _write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    text = json.dumps({**facts, "files": _file_hashes(folder)}, indent=2, sort_keys=True)
    (folder / MANIFEST).write_text(text + "\n")


def _intact(folder: Path, key: str) -> bool:
    """Is the folder complete, unchanged and made from the same key?"""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return bool(manifest["key"] == key and manifest["files"] == _file_hashes(folder))
    except (OSError, ValueError, KeyError, TypeError):
        return False
