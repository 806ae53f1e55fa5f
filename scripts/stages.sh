# Sourced by the scripts beside it: stages that are timed, and that fail where they cannot run.

stages=""
began=$(date +%s)
# What a stage returns where something that it takes cannot be had.
cannot_run=75

# stage NAME COMMAND...: runs it and ends the script where it fails. What cannot run fails too, unless FASQ_ALLOW_SKIP=1.
stage() {
    name=$1
    shift
    echo "== $name"
    start=$(date +%s)
    status=0
    "$@" || status=$?
    seconds=$(($(date +%s) - start))
    if [ "$status" = "$cannot_run" ] && [ "${FASQ_ALLOW_SKIP:-}" = 1 ]; then
        stages="$stages$(printf '%6d  %s: NOT TESTED' "$seconds" "$name")
"
    elif [ "$status" != 0 ]; then
        stages="$stages$(printf '%6d  %s: FAILED' "$seconds" "$name")
"
        exit 1
    else
        stages="$stages$(printf '%6d  %s' "$seconds" "$name")
"
    fi
}

# missing WHAT: says what cannot be had.
missing() {
    echo "$1" >&2
    return $cannot_run
}

# The seconds of each stage; for `trap report EXIT`.
report() {
    printf '\nseconds\n%s%6d  together\n' "$stages" $(($(date +%s) - began))
}
