"""Look for known vulnerabilities of the pinned dependencies: ``audit.py [services]``, run by ``make audit``.

The exit code is 1 if one is found. A service that cannot be reached, or knows none of the packages, is no reason to
fail, but is said aloud: it is not the same as finding nothing.
"""

import json
import subprocess
import sys
from pathlib import Path

PINS = Path(__file__).parents[1] / "constraints.txt"
SERVICES = ("pypi", "osv")


def main() -> int:
    """Ask one service after the other until one has an answer; returns the exit code."""
    for service in sys.argv[1:] or SERVICES:
        # What follows a colon is the address of a service of one's own, which speaks as osv does.
        name, _, url = service.partition(":")
        command = [sys.executable, "-m", "pip_audit", "--requirement", str(PINS), "--no-deps", "--disable-pip"]
        command += ["--vulnerability-service", name, "--format", "json", "--progress-spinner", "off"]
        command += ["--osv-url", url] if url else []
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
            found = json.loads(done.stdout)["dependencies"]
        except (subprocess.TimeoutExpired, ValueError, KeyError) as error:
            lines = [] if isinstance(error, subprocess.TimeoutExpired) else done.stderr.strip().splitlines()
            print(f"audit: the service {name} gave no answer: {lines[-1] if lines else error}", file=sys.stderr)
            continue
        audited = [each for each in found if "vulns" in each]
        if not audited:
            print(f"audit: the service {name} answers, but knows none of {len(found)} packages", file=sys.stderr)
            continue
        for each in audited:
            for known in each["vulns"]:
                fixed = ", ".join(known["fix_versions"]) or "no version yet"
                print(f"audit: {each['name']} {each['version']} has {known['id']}, fixed in {fixed}", file=sys.stderr)
        vulnerable = sum(bool(each["vulns"]) for each in audited)
        print(f"audit: {len(audited)} of {len(found)} packages looked up at {name}, {vulnerable} vulnerable")
        return bool(vulnerable)
    print("audit: NOTHING WAS AUDITED. No service could be asked: run `make audit` where one can", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
