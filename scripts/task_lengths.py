"""Write runner/estimate/lengths.json: how many tokens GLUE's rows have, for `lorsa estimate` where the data are not.

python scripts/task_lengths.py --glue glue --bert models/minilm --llama models/llama2-tokenizer

Quantiles, from the shortest row to the longest in steps of 2 %, of each split that is in the folder, under BERT's
uncased WordPiece vocabulary (MiniLM's tokenizer) and LLaMA-2's, nothing cut off. The numbers of rows are GLUE's own and
are written for all tasks.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from omegaconf import OmegaConf
from transformers import AutoTokenizer

REPOSITORY = Path(__file__).resolve().parents[1]
OUT = REPOSITORY / "runner" / "estimate" / "lengths.json"
POINTS = 51
TOKENIZERS = {"bert": "BERT's uncased tokenizer", "llama": "LLaMA-2's tokenizer"}
ROWS = {
    "cola": {"train": 8551, "validation": 1043, "test": 1063},
    "sst2": {"train": 67349, "validation": 872, "test": 1821},
    "mrpc": {"train": 3668, "validation": 408, "test": 1725},
    "stsb": {"train": 5749, "validation": 1500, "test": 1379},
    "qqp": {"train": 363846, "validation": 40430, "test": 390965},
    "mnli": {
        "train": 392702,
        "validation_matched": 9815,
        "validation_mismatched": 9832,
        "test_matched": 9796,
        "test_mismatched": 9847,
    },
    "qnli": {"train": 104743, "validation": 5463, "test": 5463},
    "rte": {"train": 2490, "validation": 277, "test": 3000},
    "wnli": {"train": 635, "validation": 71, "test": 146},
    "ax": {"train": 392702, "test": 1104},
}


def main() -> None:
    """Tokenise what is there, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glue", type=Path, required=True, help="a folder with <task>/<split>-*.parquet")
    parser.add_argument("--bert", required=True, help="a folder or hub id with BERT's uncased tokenizer")
    parser.add_argument("--llama", required=True, help="a folder or hub id with LLaMA-2's tokenizer")
    arguments = parser.parse_args()
    lengths: dict[str, dict[str, dict[str, list[int]]]] = {}
    for kind in TOKENIZERS:
        tokenizer = AutoTokenizer.from_pretrained(getattr(arguments, kind))
        lengths[kind] = {}
        for task in ROWS:
            columns = OmegaConf.load(REPOSITORY / "conf" / "task" / f"{task}.yaml").columns
            for split in ROWS[task]:
                files = sorted((arguments.glue / task).glob(f"{split}-*.parquet"))
                if not files:
                    continue
                table = pq.read_table(files)
                tokens = tokenizer(*(table[column].to_pylist() for column in columns))["input_ids"]
                points = np.quantile([len(row) for row in tokens], np.linspace(0, 1, POINTS)).round().astype(int)
                lengths[kind].setdefault(task, {})[split] = points.tolist()
    OUT.write_text(json.dumps({"tokenizers": TOKENIZERS, "rows": ROWS, "lengths": lengths}) + "\n")
    for kind, tasks in lengths.items():
        for task, splits in tasks.items():
            train = splits["train"]
            print(f"{kind:6}{task:6}median {train[POINTS // 2]:4}  longest {train[-1]:4}  ({', '.join(splits)})")


if __name__ == "__main__":
    main()
