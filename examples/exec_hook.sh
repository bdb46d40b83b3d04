#!/bin/sh
# Provisioning hook in plain sh: one folder per instance.
#
#   [[hook]]
#   name = "provision"
#   exec = { command = ["/opt/app/exec_hook.sh", "/var/lib/my-app"] }
#
# It reads the call as one line of JSON from standard input, and writes the answer to standard output and remarks to
# standard error. SPID_ACTION holds the action, and SPID_IDEMPOTENCY_KEY the id of the job. If your hook needs more
# of the call than the instance's name, use a JSON parser: see exec_hook.py.
set -eu
umask 077

root=${1:?usage: exec_hook.sh ROOT}
call=$(cat)

# spid was killed before it wrote the call. The next attempt gets the whole call, so change nothing.
if [ -z "$call" ]; then
    echo 'the call is empty' >&2
    exit 75
fi

# Handle a payment before the name is read, because it can come before its instance has a name.
case $SPID_ACTION in
create | renew | refund-renew | upgrade | expire | release | sign-on) ;;
*)
    echo '{"refuse":"this hook does not support that"}'
    exit 65
    ;;
esac

# spid always writes `"instance":{"id":…,"order_biz_id":"…"` in this form. A text of a buyer cannot imitate it,
# because every quote inside a value is written as \". Only harmless characters are accepted.
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

# If the key is known, print the same answer again. This makes the hook idempotent.
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
sign-on)
    if [ "$(cat "$home/state" 2>/dev/null)" != active ]; then
        echo '{"refuse":"the instance is not active"}'
        exit 65
    fi
    # Your application accepts this ticket once: it signs the browser in and removes the file.
    ticket=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
    mkdir -p "$home/tickets"
    : >"$home/tickets/$ticket"
    answer="{\"redirect\":\"https://$name.app.example/login?ticket=$ticket\"}"
    ;;
upgrade | refund-renew) mkdir -p "$answers" ;; # apply the new limits and dates here
release)
    rm -rf "$home" # a missing folder means: already released
    echo '{}'
    exit 0
    ;;
esac

# Store the complete answer before it is printed. Each attempt writes its own file, because a killed attempt can
# overlap with the next one.
printf '%s\n' "$answer" >"$answers/.$$"
mv "$answers/.$$" "$answers/$SPID_IDEMPOTENCY_KEY"
echo "$SPID_ACTION of $name done" >&2
cat "$answers/$SPID_IDEMPOTENCY_KEY"
