#!/usr/bin/env bash
# Make the virtual environment named on the command line (or repair it) and install the project into it, editable.
#
# The interpreter is Python 3.11 or later; one that every user may execute is preferred, because programs of ordinary
# users run under it too and an interpreter in somebody's private home could not be started by them.  PYTHON=… overrides.
set -euo pipefail
umask 022
venv=$1
here=$(dirname "$0")

say() { printf '%s\n' "$*" >&2; }

# new_enough PYTHON: 3.11 or later.
new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# for_everybody PYTHON: its executable and its library can be reached by every user.
for_everybody() {
  "$1" - 2>/dev/null <<'CHECK'
import os, pathlib, sys
for name in (sys.executable, os.__file__):
    path = pathlib.Path(os.path.realpath(name))
    open_to_all = all(parent.stat().st_mode & 0o001 for parent in path.parents)
    if not (open_to_all and path.stat().st_mode & 0o004):
        sys.exit(1)
CHECK
}

choose() {
  local candidate private=
  if [[ -n ${PYTHON:-} ]]; then
    new_enough "$PYTHON" || { say "PYTHON=$PYTHON is not Python 3.11 or later."; return 1; }
    echo "$PYTHON"
    return
  fi
  while read -r candidate; do
    [[ -x $candidate ]] && new_enough "$candidate" || continue
    if for_everybody "$candidate"; then
      echo "$candidate"
      return
    fi
    private=${private:-$candidate}
  done < <(printf '%s\n' /usr/bin/python3 /usr/local/bin/python3 /usr/{,local/}bin/python3.{11..19}
           type -aP python3 python3.{11..19} || true)
  [[ -n $private ]] || return 1
  say "Using $private, which other users of this machine cannot run."
  echo "$private"
}

if ! "$venv/bin/python" -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
  rm -rf "$venv"
  if ! python=$(choose); then
    "$here/debian-packages.sh" python3 python3-venv >/dev/null
    python=$(choose) || { say 'No Python 3.11 or later found: install one, or name it with PYTHON=/path/to/python3.'; exit 1; }
  fi
  if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    # Debian keeps these two modules in a package of their own.
    package=python3-venv
    [[ $python == /usr/bin/python3 ]] || package=$(basename "$python")-venv
    "$here/debian-packages.sh" "$package" >/dev/null
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
      { say "$python cannot make virtual environments: install $package, then try again."; exit 1; }
  fi
  say "Making $venv with $python"
  "$python" -m venv "$venv"
fi
say "Installing AppSwitch and its development tools into $venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --retries 10 --timeout 60 --editable '.[dev]'
