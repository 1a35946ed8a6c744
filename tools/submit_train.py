#!/usr/bin/env python
"""Train on a SLURM cluster with submitit (pip install submitit), or test it on this machine.

python tools/submit_train.py --nodes 2 --gpus-per-node 8 --timeout-min 1440 --partition gpu \
    --config-file configs/LVIS/vild_ensemble_r50_fpn_lsj.yaml OUTPUT_DIR output/mine

Arguments that this tool does not know are passed to train_net.py. A job that is preempted or runs
out of time writes a checkpoint and is resubmitted with --resume.
"""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from pathlib import Path
from typing import Any

from vild_cli.arguments import positive_int, tool_parser
from vild_cli.errors import one_line_errors

TRAIN = Path(__file__).parents[1] / "projects" / "ViLD" / "train_net.py"


class Training:
    """The function that every task of the job runs.

    Args:
        arguments: arguments of train_net.py.
        port: rendezvous port on the first machine.
    """

    def __init__(self, arguments: list[str], port: int) -> None:
        self.arguments, self.port = arguments, port

    def __call__(self) -> None:
        """Run this task's process."""
        import submitit

        job = submitit.JobEnvironment()
        # torchrun's environment variables, which vild.engine.launch reads
        os.environ.update(
            TORCHELASTIC_RUN_ID=str(job.job_id),
            RANK=str(job.global_rank),
            LOCAL_RANK=str(job.local_rank),
            WORLD_SIZE=str(job.num_tasks),
            LOCAL_WORLD_SIZE=str(job.num_tasks // job.num_nodes),
            GROUP_RANK=str(job.node),
            MASTER_ADDR=job.hostnames[0],
            MASTER_PORT=str(self.port),
        )
        sys.argv = [str(TRAIN), *self.arguments]
        runpy.run_path(str(TRAIN), run_name="__main__")

    def checkpoint(self) -> Any:
        """Resubmit after a preemption; the training has written its checkpoint."""
        from submitit.helpers import DelayedSubmission

        arguments = self.arguments
        if "--resume" not in arguments:
            arguments = ["--resume", *arguments]
        return DelayedSubmission(Training(arguments, self.port))


def build_parser() -> argparse.ArgumentParser:
    """Build the argument parser; unknown arguments are for train_net.py."""
    parser = tool_parser(__doc__)
    parser.add_argument("--cluster", choices=("slurm", "local"), default="slurm")
    parser.add_argument("--nodes", type=positive_int, default=1)
    parser.add_argument(
        "--gpus-per-node", type=int, default=8, help="GPUs, and processes, per node"
    )
    parser.add_argument("--cpus-per-task", type=positive_int, default=6)
    parser.add_argument(
        "--timeout-min", type=positive_int, default=24 * 60, help="time limit of the job in minutes"
    )
    parser.add_argument("--partition")
    parser.add_argument("--log-dir", default="output/submitit")
    parser.add_argument("--port", type=int, default=29500)
    parser.add_argument("--wait", action="store_true", help="wait for the end of the job")
    return parser


@one_line_errors
def main() -> int:
    """Run the command and return its exit code."""
    args, rest = build_parser().parse_known_args()
    try:
        import submitit
    except ImportError:
        raise ValueError("submitit is not installed: pip install submitit") from None
    from vild.utils.files import require_writable_folder

    require_writable_folder(args.log_dir, "--log-dir")
    executor = submitit.AutoExecutor(folder=args.log_dir, cluster=args.cluster)
    executor.update_parameters(
        name="vild",
        nodes=args.nodes,
        tasks_per_node=max(args.gpus_per_node, 1),
        timeout_min=args.timeout_min,
    )
    if args.cluster == "slurm":
        executor.update_parameters(
            gpus_per_node=args.gpus_per_node, cpus_per_task=args.cpus_per_task
        )
        if args.partition:
            executor.update_parameters(slurm_partition=args.partition)
    job = executor.submit(Training(rest, args.port))
    print(f"job {job.job_id}, logs in {args.log_dir}")
    if args.wait:
        job.results()  # waits for all tasks; raises if one failed
    return 0


if __name__ == "__main__":
    sys.exit(main())
