"""Export of an intervention as control vectors of llama.cpp: one direction per block, added to the block's output."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lineas.errors import LineasError, needing
from lineas.files.ownership import written_by
from lineas.files.writing import new_file
from lineas.intervention.intervention import Intervention
from lineas.intervention.maps import SUPPORT_TOLERANCE

BLOCK = re.compile(r"(?:.*\.)?(?:layers|h|blocks|block)\.(\d+)")
"""The names of blocks: `model.layers.3`, `transformer.h.3`."""


@dataclass(frozen=True)
class ControlVector:
    """Directions by block, and the parts of the intervention that the format cannot hold.

    Args:
        directions: for each block from 1 on, the direction added to its output at every token, float32 `[d]`.
        lost: for each site, a description of the part that is lost.
    """

    directions: dict[int, torch.Tensor]
    lost: dict[str, str]

    @classmethod
    def of(cls, intervention: Intervention) -> ControlVector:
        """Take the shifts at the outputs of blocks from an intervention.

        Raises:
            LineasError: when there are none, or the intervention has a gate.
        """
        intervention.check_affine("exported")
        if all(map_.is_identity() for map_ in intervention.maps.values()):
            raise LineasError(
                "this intervention changes nothing (at strength 0 none does), so it has no control vector; export it "
                "at another strength, or export another one."
            )
        directions: dict[int, torch.Tensor] = {}
        lost: dict[str, str] = {}
        for name, map_ in intervention.maps.items():
            block = BLOCK.fullmatch(name)
            if block is None:
                lost[name] = "all of it: a control vector acts on the outputs of blocks"
            elif int(block[1]) == 0:
                lost[name] = "all of it: llama.cpp's control vectors begin at block 1"
            else:
                directions[int(block[1])] = map_.shift
                scaled = (map_.scale - 1).abs()
                if count := int((scaled > SUPPORT_TOLERANCE).sum()):
                    largest = float(scaled.max())
                    lost[name] = f"the scales of {count} of {map_.width} neurons, up to {largest:.3g} from 1"
        if directions and not any(bool(direction.any()) for direction in directions.values()):
            raise LineasError(
                "every shift at the outputs of blocks is 0 (the strength is 0, or only scales were learned), and a "
                "control vector holds shifts alone; there is nothing to export."
            )
        if not directions:
            raise LineasError(
                "nothing of this intervention can be a control vector, which adds to the outputs of blocks 1 and up; "
                r"learn with sites such as 'model\.layers\.\d+', or fold it into a checkpoint and convert that."
            )
        return cls(directions, lost)

    def write(self, path: Path, architecture: str) -> None:
        """Write the GGUF that llama.cpp reads with `--control-vector`.

        Args:
            path: the file to write; after a failure there is none.
            architecture: the network's class name, from which the file's model hint is made.

        Raises:
            LineasError: when the package gguf is not installed.
        """
        with needing("writing a GGUF needs the package gguf", "embedded"):
            from gguf import GGUFWriter
        with new_file(path) as beside:
            writer: Any = GGUFWriter(beside, "controlvector")
            writer.add_string("controlvector.model_hint", re.sub(r"For\w+|LMHeadModel", "", architecture).lower())
            writer.add_string("lineas.version", written_by())  # marks the file as written by lineas
            writer.add_uint32("controlvector.layer_count", len(self.directions))
            for block, direction in sorted(self.directions.items()):
                writer.add_tensor(f"direction.{block}", direction.detach().float().cpu().numpy())
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
