"""`python -m hf_sllm.training` in processes on the CPU that accelerate takes for GPUs.

accelerate shards weights on accelerators only, and on the CPU silently trains by DDP instead; torch shards on both. So
what runs here is what would run on GPUs, but for the device, and gloo in NCCL's place.
"""

import os

os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"

from accelerate.state import PartialState
from accelerate.utils import DistributedType

from hf_sllm.training.__main__ import main

PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)

if __name__ == "__main__":
    main()
