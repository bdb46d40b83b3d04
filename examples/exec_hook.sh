#!/bin/sh
# A provisioning hook in plain sh: a folder per instance.
#
#   [[hook]]
#   name = "provision"
#   exec = { command = ["/opt/app/exec_hook.sh", "/var/lib/my-app"] }
#
# The call comes as one line of JSON on standard input, the answer goes to standard output, remarks
# go to standard error. SPID_ACTION and SPID_IDEMPOTENCY_KEY say what is asked and which job it is.
# A hook that needs more of the call than the instance's name should read it with a JSON parser:
# see exec_hook.py.
set -eu
umask 077

root=${1:?usage: exec_hook.sh ROOT}
call=$(cat)

# Before the name is looked for: a payment comes before anything has one.
case $SPID_ACTION in
create | renew | refund-renew | upgrade | expire | release) ;;
*)
    echo '{"refuse":"this hook does not support that"}'
    exit 65
    ;;
esac

# `"instance":{"id":…,"order_biz_id":"…"` is always written like this, and nothing a buyer typed can
# look like it: every quote inside a value is written as \". Only harmless characters are taken.
name=$(printf '%s\n' "$call" |
    sed -n 's/.*"instance":{"id":[^,]*,"order_biz_id":"\([A-Za-z0-9._-]*\)".*/\1/p')
case $name in
'' | .*)
    echo 'the instance has no name that could be a folder' >&2
    exit 75
    ;;
esac

home=$root/$name
answers=$home/answers
answer='{}'

# Done before? Then the same answer again: that is all of idempotency.
if [ -f "$answers/$SPID_IDEMPOTENCY_KEY" ]; then
    cat "$answers/$SPID_IDEMPOTENCY_KEY"
    exit 0
fi

set_state() {
    mkdir -p "$answers"
    printf '%s\n' "$1" >"$home/state.$$"
    mv "$home/state.$$" "$home/state"
}

case $SPID_ACTION in
create)
    set_state active
    answer="{\"instance_id\":\"$name\",\"app\":{\"front_end_url\":\"https://$name.app.example\"}}"
    ;;
renew) set_state active ;;
expire) set_state frozen ;;
upgrade | refund-renew) mkdir -p "$answers" ;; # the new limits and dates would be applied here
release)
    rm -rf "$home" # nothing there is released already
    echo '{}'
    exit 0
    ;;
esac

# The answer is kept before it is given, and never half: each attempt writes a file of its own, as what is
# left of one may still run beside the next.
printf '%s\n' "$answer" >"$answers/.$$"
mv "$answers/.$$" "$answers/$SPID_IDEMPOTENCY_KEY"
echo "$SPID_ACTION of $name done" >&2
cat "$answers/$SPID_IDEMPOTENCY_KEY"
