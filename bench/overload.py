"""Every attack of tests/harness/attacks.py on a gateway of a real cluster, beside a quiet client: a table.

python bench/overload.py                       what `make overload` runs: full sizes
python bench/overload.py --small --only flood  one of them, as the tests run it
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "harness"))
from attacks import ATTACKS, BY_NAME
from process_cluster import running
from siege import Outcome, Siege, problems

GROWTH_MIB_MAX = 1_500
LOG_LINES_MAX = 100


async def run(names: list[str], seconds: float, *, full: bool, transport: str) -> int:
    """The number of attacks after which something was not as it must be."""
    wrong: list[str] = []
    variables = {"gateway": {"FLOTTA_GATEWAY_TRANSPORT": transport}} if transport else None
    with tempfile.TemporaryDirectory(prefix="flotta-overload-") as folder:
        async with running(Path(folder), gateways=1, variables=variables) as cluster:
            siege = Siege(cluster, "gateway", cluster.gateway_address())
            await siege.prepare()
            print(Outcome.head(), flush=True)
            for name in names:
                outcome = await siege.carry_out(BY_NAME[name], seconds, full=full, alone_s=2)
                print(outcome.row(), flush=True)
                wrong += problems(outcome, growth_mib_max=GROWTH_MIB_MAX, log_lines_max=LOG_LINES_MAX)
                if outcome.crashed:
                    break
    print("\n".join(wrong) or "\nAll of it held.")
    return len(wrong)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(attack.name for attack in ATTACKS))
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--small", action="store_true", help="sizes as in the tests")
    parser.add_argument("--transport", default="", help="native or grpcio; unset: the default")
    given = parser.parse_args()
    names = given.only.split(",")
    return 1 if asyncio.run(run(names, given.seconds, full=not given.small, transport=given.transport)) else 0


if __name__ == "__main__":
    sys.exit(main())
