"""Bandwidth floors measured with real packets: python -m tests.bandwidth [--json FILE] [SCENE...]   (root; 10 s a scene)"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from tests.bandwidth.scenes import SCENES, measure


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bandwidth")
    parser.add_argument("--json", type=Path, help="write what was measured to this file")
    parser.add_argument("--rate-mbit", type=int, default=500, help="of every wire")
    parser.add_argument("scenes", nargs="*", metavar="SCENE", help=", ".join(scene.name for scene in SCENES))
    arguments = parser.parse_args()
    wanted = arguments.scenes or [scene.name for scene in SCENES]
    print("scene           others' worst second   gave way after   migration before   clean")
    measured = []
    for scene in (scene for scene in SCENES if scene.name in wanted):
        of = measure(scene, rate_mbit=arguments.rate_mbit)
        measured.append(of)
        worst = "-" if of.others_worst is None else f"{of.others_worst:.2f} of their minimum"
        after = "-" if of.gave_way_s is None else f"{of.gave_way_s:.2f} s"
        moved = "-" if of.migration_before is None else f"{of.migration_before:.1%} of the wire"
        print(f"{of.scene:14}  {worst:21}  {after:15}  {moved:17}  {'yes' if of.clean else 'NO'}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(of) for of in measured], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
