//! A killed daemon leaves its hooks running; the next start kills them before it tries again.
#![allow(clippy::unwrap_used, reason = "a test that panics has said what it found")]

use std::fs::{self, OpenOptions};

use crate::support::daemon::{Home, create, get};
use crate::support::executable::executable;
use crate::support::said::Said;

/// The first attempt hangs and ignores signals. The second checks if the first still runs. Both report in a pipe.
const HOOK: &str = r#"#!/bin/sh
trap '' TERM INT HUP PIPE
cd "${0%/*}" || exit 1
cat > /dev/null
if [ "$SPID_ATTEMPT" = 1 ]; then
  echo $$ > first
  sh -c 'trap "" TERM; while :; do sleep 600; done' &
  echo "first" > said
  while :; do sleep 600; done
fi
group=$(cat first)
with=alone
for stat in /proc/[0-9]*/stat; do
  { read -r line < "$stat"; } 2> /dev/null || continue
  set -- ${line##*) } # state, parent, group, …
  if [ "$3" = "$group" ] && [ "$1" != Z ]; then with="beside the first"; fi
done
echo "second $with" > said
echo '{"instance_id": "tenant-1"}'
"#;

#[test]
fn a_hook_that_outlived_its_daemon_is_dead_before_the_next_attempt() {
    let home = Home::empty();
    executable(&home.path("hook"), HOOK);
    assert!(std::process::Command::new("mkfifo").arg(home.path("said")).status().unwrap().success());
    let hook = format!("exec = {{ command = [{:?}] }}", home.path("hook"));
    home.configure(&home.config("60s", &hook));
    // Open it in both directions, so that it does not end when a hook closes it.
    let said = Said::by(OpenOptions::new().read(true).write(true).open(home.path("said")).unwrap());

    let order = create("biz-1").signed();
    let daemon = home.start();
    let (address, query) = (daemon.address, order.clone());
    let delivery = std::thread::spawn(move || get(address, &query));
    assert_eq!(said.line(), "first");
    daemon.kill();
    assert_eq!(delivery.join().unwrap(), None, "an answer came from a dead daemon");

    let daemon = home.start();
    assert_eq!(said.line(), "second alone");
    assert_eq!(daemon.get(&order).id(), "tenant-1");
    daemon.stop();
    assert_eq!(fs::read_dir(home.path("spid.db.running")).unwrap().count(), 0, "a mark was left");
}
