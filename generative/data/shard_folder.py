"""A folder of shards in the making: what it will hold, what of it is whole, and what lies in its place."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from generative.core.checkpoint import flush_to_disk
from generative.core.errors import UserError
from generative.core.lock import hold_folder, release_folder
from generative.core.logging import write_json
from generative.data.base import ImageDataset
from generative.data.shard_images import ShardSettings
from metrics.files.shards import ARRAYS_FILE, ENCODINGS, INDEX_FILE, Shard, read_description

PLAN_FILE = "plan.json"
"""What an unfinished folder will hold, under the name ``.NAME.partial``."""
NOTES_FOLDER = ".notes"
"""There, one file for each shard that is whole: its labels, offsets and what could not be read."""


@dataclass
class ShardNotes:
    """What is known of a shard that is whole.

    Attributes:
        shard: Its file; None if none of its images could be read.
        labels: Class of each image.
        offsets: Where each begins.
        lengths: Bytes of each.
        left_out: Name and reason of each image that could not be read.
    """

    shard: Shard | None = None
    labels: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)


class ShardFolder:
    """A folder of shards in the making.

    Every shard is made of a fixed range of the source, so that shards do not depend on the number of processes, nor on kills.

    Args:
        images: The source.
        settings: How its images are made.
        output: The folder.
        overwrite: Replace other prepared images there.
        class_ids: What the source calls its classes, where they are named otherwise (WordNet ids).

    Attributes:
        is_complete: Whether the folder holds just these images already.

    Raises:
        UserError: If the place is taken by something else, or by images of another source or other settings.
    """

    def __init__(
        self,
        images: ImageDataset,
        settings: ShardSettings,
        output: Path,
        overwrite: bool = False,
        class_ids: Sequence[str] | None = None,
    ) -> None:
        # Beside the folder that a link leads to, on its disk: a link could not be replaced by a folder.
        self.output = output.resolve() if output.is_symlink() else output
        self.images, self.settings = images, settings
        self.partial = self.output.with_name(f".{self.output.name}.partial")
        self.num_shards = -(-len(images) // settings.shard_images)
        source = {
            "dataset": type(images).__name__,
            "fingerprint": images.fingerprint,
            "images": len(images),
            "class_names": images.class_names,
            "class_ids": None if class_ids is None else list(class_ids),
        }
        self.plan: dict[str, Any] = json.loads(json.dumps({"settings": settings.to_json(), "source": source}))
        self.is_complete = self._check_output(overwrite)

    def _check_output(self, overwrite: bool) -> bool:
        """Look at what lies where the shards are to be written; nothing is changed."""
        if self.output.exists():
            if self.output.is_mount():
                raise UserError(
                    f"output '{self.output}' is where a disk is mounted, which cannot be renamed once the shards are whole; give "
                    f"a folder on it, for example '{self.output / 'shards'}'"
                )
            found = read_description(self.output) if self.output.is_dir() else None
            if found is None:
                if self.output.is_dir() and not any(self.output.iterdir()):
                    return False
                raise UserError(f"output '{self.output}' exists and holds no prepared images; choose another folder")
            if overwrite:
                self._refuse_others()
                return False
            if self._difference(found) is None:
                return True
            raise UserError(
                f"'{self.output}' already holds images prepared {self._difference(found)}; choose another folder, or --overwrite"
            )
        found = self._read_plan()
        if found is not None and not overwrite and self._difference(found) is not None:
            raise UserError(
                f"'{self.partial}' holds unfinished shards {self._difference(found)}; choose another folder, or --overwrite"
            )
        return False

    def _refuse_others(self) -> None:
        """Files of the user's beside the shards would be lost with the folder that is replaced.

        Raises:
            UserError: If there are such.
        """
        known = re.compile(rf"{INDEX_FILE}|{ARRAYS_FILE}|shard-\d{{5,}}\.(tar|npy)|{PLAN_FILE}|{NOTES_FOLDER}")
        others = sorted(path.name for path in self.output.iterdir() if not known.fullmatch(path.name))
        if others:
            raise UserError(f"'{self.output}' holds '{others[0]}' beside its shards, which would be deleted; move it away")

    def _read_plan(self) -> dict[str, Any] | None:
        try:
            plan = json.loads((self.partial / PLAN_FILE).read_text())
        except (OSError, ValueError):
            return None
        return plan if isinstance(plan, dict) else None

    def _difference(self, found: dict[str, Any]) -> str | None:
        """In what prepared images differ from these, as the end of a sentence; None if in nothing."""
        settings, source = found.get("settings") or {}, found.get("source") or {}
        ours = self.plan["settings"]
        for name in (*ours, *settings):
            if settings.get(name) != ours.get(name):
                return f"with {name} {settings.get(name)}, these would have {ours.get(name)}"
        if source != self.plan["source"]:
            return f"of other images ({source.get('images')} of {source.get('dataset')} {str(source.get('fingerprint'))[:12]})"
        return None

    def shard_path(self, shard: int) -> Path:
        """Where a shard lies until all are whole."""
        return self.partial / f"shard-{shard:05d}{ENCODINGS[self.settings.encode][0]}"

    def images_of(self, shard: int) -> range:
        """Places in the source of a shard's images."""
        start = shard * self.settings.shard_images
        return range(start, min(start + self.settings.shard_images, len(self.images)))

    def start(self) -> list[int]:
        """Make the unfinished folder, or take up the one that is there, and hold it against other processes.

        Returns:
            The shards that are still to be written.

        Raises:
            UserError: If another process writes it, or pixels of this size have no room on the disk.
        """
        self.output.parent.mkdir(parents=True, exist_ok=True)
        if self.partial.exists():
            hold_folder(self.partial)
            plan = self._read_plan()
            if plan is None or self._difference(plan) is not None:
                shutil.rmtree(self.partial)  # --overwrite, or a start that was killed before its plan was written
        (self.partial / NOTES_FOLDER).mkdir(parents=True, exist_ok=True)
        hold_folder(self.partial)
        for leftover in self.partial.rglob(".*.partial"):
            leftover.unlink()
        missing = [shard for shard in range(self.num_shards) if not self.is_whole(shard)]
        self._check_space(missing)
        write_json(self.partial / PLAN_FILE, self.plan)
        return missing

    def is_whole(self, shard: int) -> bool:
        """Whether a shard is written and known."""
        notes = self.read_notes(shard)
        if notes is None:
            return False
        path = self.shard_path(shard)
        return notes.shard is None or (path.is_file() and path.stat().st_size == notes.shard.bytes)

    def _check_space(self, missing: Sequence[int]) -> None:
        """Pixels take a known room: refuse before hours of work."""
        if self.settings.encode != "raw":
            return
        side = self.settings.resolution or 0
        needed = sum(len(self.images_of(shard)) for shard in missing) * 3 * side**2
        free = shutil.disk_usage(self.partial).free
        if needed > free:
            raise UserError(
                f"the pixels take {needed / 2**30:,.1f} GiB and the disk of '{self.output}' has {free / 2**30:,.1f} GiB left; "
                "free some space, or take --encode jpeg"
            )

    def read_notes(self, shard: int) -> ShardNotes | None:
        """What is known of a shard; None if it is not whole."""
        try:
            content = json.loads((self.partial / NOTES_FOLDER / f"{shard:05d}.json").read_text())
            file = content.pop("shard")
            return ShardNotes(None if file is None else Shard(**file), **content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def write_notes(self, shard: int, notes: ShardNotes) -> None:
        """Say that a shard is whole, and what is in it."""
        content = {**vars(notes), "shard": None if notes.shard is None else vars(notes.shard)}
        write_json(self.partial / NOTES_FOLDER / f"{shard:05d}.json", content)

    def left_out(self) -> list[dict[str, str]]:
        """Name and reason of every image that could not be read; all shards are whole."""
        return [entry for notes in self.all_notes() for entry in notes.left_out]

    def all_notes(self) -> list[ShardNotes]:
        """Notes of the shards that are whole, in order."""
        notes = [self.read_notes(shard) for shard in range(self.num_shards)]
        return [each for each in notes if each is not None]

    def publish(self) -> None:
        """Give the folder its name, whole as it is now; an older one there is replaced."""
        flush_to_disk(self.partial)
        if self.output.exists():
            self._refuse_others()  # again: what came there in the meantime
            previous = previous_folder(self.output)
            shutil.rmtree(previous, ignore_errors=True)
            self.output.rename(previous)
        self.partial.rename(self.output)
        release_folder(self.partial)
        clean_up(self.output)


def previous_folder(folder: Path) -> Path:
    """What a folder that is replaced is called until the new one has its name."""
    return folder.with_name(f".{folder.name}.previous.partial")


def clean_up(folder: Path) -> None:
    """Remove what only an unfinished folder needs, and the one that a whole folder replaced; a kill may have left them."""
    shutil.rmtree(previous_folder(folder), ignore_errors=True)
    shutil.rmtree(folder / NOTES_FOLDER, ignore_errors=True)
    (folder / PLAN_FILE).unlink(missing_ok=True)
