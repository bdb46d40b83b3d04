//! A daemon that is killed leaves its hooks behind; the next start ends them before it tries again.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that panics has said what it found")]
#![allow(clippy::disallowed_methods, reason = "what is tested is a process")]

use std::fs::{self, OpenOptions};
use std::time::Duration;

use crate::support::executable::executable;
use crate::support::said::Said;
use crate::support::serving::{Serving, deliver};
use spid::clock::Clock;
use spid::dialect::{self, OutRequest, Sending};
use spid::signature::{Keys, Secret};

const KEY: &str = "fake-test-key";

/// The first attempt sits there for ever and cannot be asked to go; the second looks whether it is
/// still there. Both say so in a pipe.
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

fn create() -> OutRequest {
    let keys = Keys::single(Secret::new(KEY)).unwrap();
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let parameters = [pair("orderBizId", "biz-1"), pair("orderId", "order-1"), pair("productCode", "p-1")];
    let dialect = dialect::by_name("alibaba").unwrap();
    dialect.request("createInstance", &parameters, &keys, &Sending::at(Clock::System.now()))
}

#[test]
fn a_hook_that_outlived_its_daemon_is_dead_before_the_next_attempt() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    executable(&at("hook"), HOOK);
    assert!(std::process::Command::new("mkfifo").arg(at("said")).status().unwrap().success());
    fs::write(at("key"), KEY).unwrap();
    fs::write(
        at("spid.toml"),
        format!(
            "store.path = {:?}\n[[endpoint]]\nname = \"e\"\npath = \"/spi\"\ndialect = \"alibaba\"\n\
             keys = [{{ file = {:?} }}]\n[[hook]]\nname = \"h\"\nexec = {{ command = [{:?}] }}\n",
            at("spid.db"),
            at("key"),
            at("hook"),
        ),
    )
    .unwrap();
    // Open both ways, so that it does not end when a hook closes it.
    let said = Said::by(OpenOptions::new().read(true).write(true).open(at("said")).unwrap());

    let mut daemon = Serving::start(folder.path(), &[]);
    let address = daemon.address().unwrap();
    let delivery = std::thread::spawn(move || deliver(address, "/spi", &create(), || ()));
    assert_eq!(said.line(), "first");
    daemon.kill();
    assert!(delivery.join().unwrap().is_err(), "an answer came from a dead daemon");
    drop(daemon);

    let mut daemon = Serving::start(folder.path(), &[]);
    let address = daemon.address().unwrap();
    assert_eq!(said.line(), "second alone");
    let answer = deliver(address, "/spi", &create(), || ()).unwrap();
    assert!(answer.contains("tenant-1"), "{answer}");
    daemon.terminate();
    assert!(daemon.ended_within(Duration::from_secs(30)).unwrap().success());
    assert_eq!(fs::read_dir(at("spid.db.running")).unwrap().count(), 0, "a mark was left");
}
