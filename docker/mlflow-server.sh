#!/usr/bin/env bash
# An MLflow server on PostgreSQL, with artifacts in an S3-compatible store. Secrets come from files, never from arguments:
# an argument list can be read by every user of the machine.
set -euo pipefail

: "${POSTGRES_HOST:?}" "${POSTGRES_PASSWORD_FILE:?}" "${ARTIFACT_ROOT:?}"
user="${POSTGRES_USER:-mlflow}"
database="${POSTGRES_DB:-mlflow}"
quoted="$(python3 -c 'import sys, urllib.parse; print(urllib.parse.quote(sys.stdin.read().strip(), safe=""))' < "$POSTGRES_PASSWORD_FILE")"
export MLFLOW_BACKEND_STORE_URI="postgresql+psycopg2://${user}:${quoted}@${POSTGRES_HOST}:${POSTGRES_PORT:-5432}/${database}"
export MLFLOW_ARTIFACTS_DESTINATION="$ARTIFACT_ROOT"
if [ -n "${AWS_SECRET_ACCESS_KEY_FILE:-}" ]; then
    AWS_SECRET_ACCESS_KEY="$(cat "$AWS_SECRET_ACCESS_KEY_FILE")"
    export AWS_SECRET_ACCESS_KEY
fi

exec mlflow server --serve-artifacts --host "${MLFLOW_HOST:-127.0.0.1}" --port "${MLFLOW_PORT:-5000}" --workers "${MLFLOW_WORKERS:-2}" "$@"
