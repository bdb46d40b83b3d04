//! The floor: a server that does only what durability costs.
//!
//! It verifies the token, writes one row in a group commit, writes "done" in a second group commit, and answers. A
//! repeat is read by its primary key. There is no lifecycle, queue, audit, log or limit, and no index but the primary
//! key. The distance from spid to this server is the cost of everything else that spid does.
//!
//! The code shares nothing with spid but the libraries: hyper, rusqlite and MD5. The database has the same settings as
//! spid's (WAL, `synchronous=FULL`).

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, mpsc};

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use md5::{Digest, Md5};
use rusqlite::{Connection, OpenFlags, OptionalExtension};
use tokio::sync::oneshot;

use crate::{orders, servers};

/// Operations of one commit, at most. The same bound as spid's.
const BATCH: usize = 256;

/// Readers of repeats. Each request takes one for the time of a lookup.
const READERS: usize = 4;

/// Change of the row of an order.
enum Change {
    New(String),
    Done(String),
}

type Write = (Change, oneshot::Sender<bool>);

struct Floor {
    writes: mpsc::Sender<Write>,
    readers: Vec<std::sync::Mutex<Connection>>,
}

/// Serves until it is killed; prints its address.
pub(crate) fn serve(folder: &Path) -> ExitCode {
    let path = folder.join("floor.db");
    let connection = open(&path);
    let (writes, queue) = mpsc::channel();
    std::thread::spawn(move || write(connection, &queue));
    let readers = (0..READERS).map(|_| std::sync::Mutex::new(reader(&path))).collect();
    let floor = Arc::new(Floor { writes, readers });
    servers::serve(move |socket| connection_of(socket, floor.clone()))
}

fn open(path: &PathBuf) -> Connection {
    let connection = Connection::open(path).unwrap();
    connection.pragma_update(None, "journal_mode", "WAL").unwrap();
    connection.pragma_update(None, "synchronous", "FULL").unwrap();
    connection.pragma_update(None, "wal_autocheckpoint", 4_000).unwrap();
    let table =
        "CREATE TABLE IF NOT EXISTS floor (name TEXT PRIMARY KEY, done INTEGER NOT NULL) WITHOUT ROWID";
    connection.execute(table, []).unwrap();
    connection
}

fn reader(path: &PathBuf) -> Connection {
    // A lock in this program is enough, because a reader is only ever used by its holder.
    Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)
        .unwrap()
}

/// Group commit: everything that was queued during one commit shares the next.
fn write(mut connection: Connection, queue: &mpsc::Receiver<Write>) {
    while let Ok(first) = queue.recv() {
        let mut batch = vec![first];
        while batch.len() < BATCH {
            let Ok(next) = queue.try_recv() else { break };
            batch.push(next);
        }
        let transaction = connection.transaction().unwrap();
        let mut changed = Vec::with_capacity(batch.len());
        for (change, _) in &batch {
            let rows = match change {
                Change::New(name) => transaction
                    .prepare_cached("INSERT INTO floor (name, done) VALUES (?1, 0) ON CONFLICT DO NOTHING")
                    .unwrap()
                    .execute([name]),
                Change::Done(name) => transaction
                    .prepare_cached("UPDATE floor SET done = 1 WHERE name = ?1")
                    .unwrap()
                    .execute([name]),
            };
            changed.push(rows.unwrap() == 1);
        }
        transaction.commit().unwrap();
        for ((_, answer), changed) in batch.into_iter().zip(changed) {
            let _ = answer.send(changed);
        }
    }
}

impl Floor {
    async fn written(&self, change: Change) -> bool {
        let (answer, written) = oneshot::channel();
        self.writes.send((change, answer)).unwrap();
        written.await.unwrap()
    }

    /// Returns true if the order is done.
    fn is_done(&self, name: &str) -> bool {
        // A free reader if there is one, otherwise a wait for the first.
        let free = self.readers.iter().find_map(|reader| reader.try_lock().ok());
        let connection = free.unwrap_or_else(|| self.readers[0].lock().unwrap());
        let mut statement = connection.prepare_cached("SELECT done FROM floor WHERE name = ?1").unwrap();
        statement.query_row([name], |row| row.get(0)).optional().unwrap() == Some(1)
    }

    async fn respond(&self, query: &str) -> (StatusCode, String) {
        let Some(name) = verified(query) else {
            return (StatusCode::FORBIDDEN, r#"{"code":"403"}"#.to_owned());
        };
        if !self.is_done(&name) {
            self.written(Change::New(name.clone())).await;
            self.written(Change::Done(name.clone())).await;
        }
        (StatusCode::OK, format!(r#"{{"instanceId":"{name}"}}"#))
    }
}

async fn connection_of(socket: tokio::net::TcpStream, floor: Arc<Floor>) {
    let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
        let floor = floor.clone();
        async move {
            let (status, body) = floor.respond(request.uri().query().unwrap_or_default()).await;
            let mut response = Response::new(Full::new(Bytes::from(body)));
            *response.status_mut() = status;
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            Ok::<_, Infallible>(response)
        }
    });
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service).await;
}

/// Returns the name of the order if the token is right: MD5 of the sorted parameters and the key, in hexadecimal.
fn verified(query: &str) -> Option<String> {
    let mut pairs: Vec<(String, String)> = serde_urlencoded::from_str(query).ok()?;
    let token = pairs.iter().position(|(name, _)| name == "token").map(|index| pairs.swap_remove(index).1)?;
    pairs.sort_unstable();
    let mut digest = Md5::new();
    for (name, value) in &pairs {
        digest.update(name);
        digest.update("=");
        digest.update(value);
        digest.update("&");
    }
    digest.update("key=");
    digest.update(orders::KEY);
    let right: bool = hex::encode(digest.finalize()) == token;
    right.then(|| pairs.into_iter().find(|(name, _)| name == "orderBizId"))?.map(|(_, value)| value)
}
