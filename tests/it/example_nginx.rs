//! `examples/nginx_entitlements.py` and a real nginx: a whole life, a hook that is killed before the reload, orders
//! that share a reload, hostile names, and invalid configurations.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics has said what it found")]

use std::net::{SocketAddr, TcpListener};

use crate::support::daemon::{self, Answer, Home, SOON, about, create, renew, until, upgrade};
use crate::support::examples::{self, Kept};
use crate::support::executable::executable;
use crate::support::machine::lacks;

/// The hook's command for nginx. It records each call with its process id, and waits while the test holds it back.
const CALLED: &str = r#"#!/bin/sh
printf '%s %s\n' "$PPID" "$*" >> "${0%/*}/told"
while [ -e "${0%/*}/hold" ]; do sleep 0.02; done
exec "$(PATH=$PATH:/usr/sbin command -v nginx)" -e "${0%/*}/error.log" -c "${0%/*}/nginx.conf" "$@"
"#;

/// Configuration around `examples/nginx_entitlements.conf`, and the application behind it.
const AROUND: &str = r#"
daemon off;
user root root;
worker_processes 2;
pid FOLDER/nginx.pid;
events { worker_connections 64; }
http {
    access_log off;
    default_type text/plain;
    client_body_temp_path FOLDER/body;
    proxy_temp_path FOLDER/proxy;
    fastcgi_temp_path FOLDER/fastcgi;
    uwsgi_temp_path FOLDER/uwsgi;
    scgi_temp_path FOLDER/scgi;
    server {
        listen unix:FOLDER/app.sock;
        return 200 "the application of $http_host";
    }
    include FOLDER/entitlements.conf;
}
"#;

/// An nginx, and the folder of a daemon with the hook for it.
struct Edge {
    _nginx: Kept, // dropped before its folder
    home: Home,
    address: SocketAddr,
}

impl Edge {
    /// Returns `None` and prints a note if there is no nginx.
    fn start() -> Option<Edge> {
        let missing = lacks("nginx", "nginx-light") || lacks("python3", "python3");
        // Another program may have taken the free port meanwhile.
        (!missing).then(|| until("nginx is ready", Edge::try_start))
    }

    fn try_start() -> Option<Edge> {
        let [address, version] = free_addresses();
        let home = Home::empty();
        write_configuration(&home, address, version);
        let mut nginx = Kept::command(&home.path("nginx"), "TERM");
        nginx.stderr(std::fs::File::create(home.path("nginx.log")).unwrap());
        let mut nginx = Kept::start(nginx);
        let ready = until("nginx is ready or gone", || match daemon::connect(version) {
            Ok(_) => Some(true),
            Err(_) => nginx.has_ended().then_some(false),
        });
        std::fs::write(home.path("told"), "").unwrap();
        ready.then_some(Edge { home, address, _nginx: nginx })
    }

    fn get(&self, host: &str) -> Answer {
        let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        daemon::exchange(self.address, &request).unwrap()
    }

    /// Old workers of nginx still answer for a moment after a reload.
    fn wait_for(&self, host: &str, status: u16) {
        until(&format!("{host} answers {status}"), || (self.get(host).status == status).then_some(()));
    }

    /// Calls of nginx: the process and the arguments.
    fn told(&self) -> Vec<(i32, String)> {
        let text = std::fs::read_to_string(self.home.path("told")).unwrap();
        let line =
            |line: &str| line.split_once(' ').map(|(pid, what)| (pid.parse().unwrap(), what.to_owned()));
        text.lines().filter_map(line).collect()
    }

    /// Blocks all further calls of nginx.
    fn hold(&self) {
        std::fs::write(self.home.path("told"), "").unwrap();
        std::fs::write(self.home.path("hold"), "").unwrap();
    }

    /// Process of the hook that has written the file and waits before the reload.
    fn hook_in_the_middle(&self) -> i32 {
        until("a hook has written the file and calls nginx", || self.told().first().map(|(pid, _)| *pid))
    }

    fn let_go(&self) {
        std::fs::remove_file(self.home.path("hold")).unwrap();
    }

    fn hosts(&self) -> String {
        std::fs::read_to_string(self.home.path("hosts.map")).unwrap()
    }
}

/// Configuration: the daemon's, nginx's, and the example's part with its places changed.
fn write_configuration(home: &Home, address: SocketAddr, version: SocketAddr) {
    let folder = home.path("").display().to_string();
    let hook = examples::source("nginx_entitlements.py").display().to_string();
    let map = format!("{folder}/hosts.map");
    let command = [&hook, &map, "app.example", &version.to_string(), &format!("{folder}/nginx")];
    home.configure(
        &home.config("60s", &format!("exec = {{ command = {command:?}, concurrency = 32, {SOON} }}")),
    );
    let mut site = std::fs::read_to_string(examples::source("nginx_entitlements.conf")).unwrap();
    for (from, to) in [
        ("/var/lib/entitlements/hosts.map", &map),
        ("listen 80;", &format!("listen {address};")),
        ("listen 127.0.0.1:8089;", &format!("listen {version};")),
        ("http://127.0.0.1:3000", &format!("http://unix:{folder}/app.sock")),
    ] {
        assert_eq!(site.matches(from).count(), 1, "{from}");
        site = site.replace(from, to);
    }
    std::fs::write(home.path("entitlements.conf"), site).unwrap();
    std::fs::write(home.path("nginx.conf"), AROUND.replace("FOLDER", &folder)).unwrap();
    std::fs::write(home.path("hosts.map"), "").unwrap();
    executable(&home.path("nginx"), CALLED);
}

fn free_addresses() -> [SocketAddr; 2] {
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap())
}

/// The host in the answer to a create.
fn host(answer: &Answer) -> String {
    let told = answer.json();
    told["appInfo"]["frontEndUrl"].as_str().unwrap().strip_prefix("https://").unwrap().to_owned()
}

#[test]
fn a_host_lives_a_whole_life_with_kills_between_the_file_and_the_reload() {
    let Some(edge) = Edge::start() else { return };
    assert_eq!(edge.get("unknown.app.example").status, 404);

    // The whole daemon dies, and the hook remains.
    edge.hold();
    let daemon = edge.home.start();
    let (address, order) = (daemon.address, create("ob-1").signed());
    let delivery = std::thread::spawn(move || daemon::get(address, &order));
    edge.hook_in_the_middle();
    daemon.kill();
    assert_eq!(delivery.join().unwrap(), None, "an answer came from a dead daemon");
    let daemon = edge.home.start(); // the start kills the remaining hook
    edge.let_go();
    let host = host(&daemon.deliver_until_done(&create("ob-1")));
    edge.wait_for(&host, 200);
    assert_eq!(edge.get(&host).body, format!("the application of {host}"));
    assert!(daemon.deliver(&upgrade("ob-1", "pro")).success());

    // Only the hook dies.
    edge.hold();
    let expire = about("expiredInstance", "ob-1");
    std::thread::scope(|scope| {
        let delivery = scope.spawn(|| daemon.deliver(&expire));
        let hook = edge.hook_in_the_middle();
        assert!(edge.hosts().contains("frozen"), "the file says it");
        assert_eq!(edge.get(&host).status, 200, "and nginx does not");
        examples::kill(hook);
        edge.let_go();
        delivery.join().unwrap();
    });
    assert!(daemon.deliver_until_done(&expire).success());
    edge.wait_for(&host, 402);

    assert!(daemon.deliver(&renew("ob-1", "2031-01-01 00:00:00")).success());
    edge.wait_for(&host, 200);
    assert!(daemon.deliver(&about("releaseInstance", "ob-1")).success());
    edge.wait_for(&host, 404);
    assert!(!edge.hosts().contains("app.example"));
}

#[test]
fn orders_that_come_together_share_one_reload() {
    let Some(edge) = Edge::start() else { return };
    let daemon = edge.home.start();
    // Another process reloads at this moment.
    let reloading = std::fs::File::create(edge.home.path("hosts.reload-lock")).unwrap();
    reloading.lock().unwrap();
    let orders: Vec<_> = (0..20).map(|number| create(&format!("ob-{number}"))).collect();
    let hosts: Vec<String> = std::thread::scope(|scope| {
        let deliveries: Vec<_> =
            orders.iter().map(|order| scope.spawn(|| daemon.deliver_until_done(order))).collect();
        until("all have written", || (edge.hosts().matches("active").count() == 20).then_some(()));
        drop(reloading);
        deliveries.into_iter().map(|delivery| host(&delivery.join().unwrap())).collect()
    });
    // One reload, unless an old worker still reported the earlier version.
    let reloads = edge.told().iter().filter(|(_, what)| what == "-s reload").count();
    assert!((1..4).contains(&reloads), "{reloads} reloads");
    hosts.iter().for_each(|host| edge.wait_for(host, 200));
}

#[test]
fn no_name_breaks_the_file_and_no_mistake_elsewhere_is_loaded() {
    let Some(edge) = Edge::start() else { return };
    let daemon = edge.home.start();
    let made = |name: &str| host(&daemon.deliver_until_done(&create(name)));
    let hosts = ["\"; } evil", "x\" active;\n\"y", "$host", "../../etc", "ü", &"x".repeat(200)].map(made);
    hosts.iter().for_each(|host| edge.wait_for(host, 200));
    let is_ours = |line: &str| line.split('"').count() == 3 && line.ends_with(';') && line.is_ascii();
    assert!(edge.hosts().lines().all(is_ours), "{}", edge.hosts());

    let good = std::fs::read_to_string(edge.home.path("nginx.conf")).unwrap();
    std::fs::write(edge.home.path("nginx.conf"), format!("{good}\nhalf a line")).unwrap();
    std::fs::write(edge.home.path("told"), "").unwrap();
    assert_eq!(daemon.deliver(&create("ob-1")).id(), "0");
    assert!(edge.told().iter().all(|(_, what)| what == "-t -q"), "{:?}", edge.told());
    assert_eq!(edge.get(&hosts[0]).status, 200, "nginx goes on with what it had");
    std::fs::write(edge.home.path("nginx.conf"), good).unwrap();
    edge.wait_for(&made("ob-2"), 200);
    // One reload is for all orders.
    let first = daemon.deliver_until_done(&create("ob-1"));
    edge.wait_for(&host(&first), 200);
}
