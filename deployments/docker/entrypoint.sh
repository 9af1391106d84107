#!/bin/sh
# Prefect takes secrets from variables only, and a variable in the definition of a container can be read by everybody who
# may look at containers. So they are files, named like the variables, and become variables only here.
# Ferry's own secrets stay files: FERRY_SECRETS_DIR.
set -eu
for file in "${PREFECT_SECRETS_DIR:-/run/prefect}"/PREFECT_*; do
  if [ -f "$file" ]; then
    export "$(basename "$file")=$(cat "$file")"
  fi
done
# tini passes the signals of a stop on, without which no run could clean up, and buries orphans.
exec tini -- "$@"
