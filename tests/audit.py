"""Known vulnerabilities of all installed packages: python -m tests.audit [--service pypi|osv]

Asks pip-audit (extra `security`), which asks PyPI's or OSV's database over the network. Exit code 1
for a vulnerability, and when no package at all could be looked up, which pip-audit itself calls
"No known vulnerabilities found".
"""

import argparse
import json
import subprocess
import sys


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--service", choices=["pypi", "osv"], default="pypi")
    service = parser.parse_args().service
    command = [
        "-m",
        "pip_audit",
        "--skip-editable",
        "--progress-spinner",
        "off",
        "--format",
        "json",
    ]
    audit = subprocess.run(
        [sys.executable, *command, "--vulnerability-service", service],
        stdout=subprocess.PIPE,
        text=True,
    )
    if not audit.stdout:
        return 1
    return told(json.loads(audit.stdout)["dependencies"])


def told(packages: list[dict]) -> int:
    """Print what was found, and say by the exit code whether all is well."""
    asked = [package for package in packages if "skip_reason" not in package]
    for package in asked:
        for found in package["vulns"]:
            fixed = ", ".join(found["fix_versions"]) or "no version"
            print(f"{package['name']} {package['version']}: {found['id']}, fixed in {fixed}")
    bad = sum(bool(package["vulns"]) for package in asked)
    skipped = len(packages) - len(asked)
    print(f"{len(asked)} packages looked up, {bad} of them vulnerable; {skipped} not to be found")
    return int(bad > 0 or not asked)


if __name__ == "__main__":
    raise SystemExit(main())
