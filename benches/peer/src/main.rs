//! A receiver of createInstance callbacks: axum, sqlx and SQLite, one transaction an order.
//!
//! It verifies the token, records the order in one transaction and answers. It has no retries, no queue, no second
//! commit with a result, and no memory of what it reported.
//!
//! Arguments: the key, and the file of the database. It prints its address.

use std::error::Error;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use md5::{Digest, Md5};
use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

#[derive(Clone)]
struct App {
    key: String,
    pool: SqlitePool,
}

type Answer = (StatusCode, Json<serde_json::Value>);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let key = arguments.next().ok_or("the first argument is the key")?;
    let path = arguments.next().ok_or("the second argument is the database")?;
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(std::time::Duration::from_secs(30));
    let pool = SqlitePoolOptions::new().max_connections(8).connect_with(options).await?;
    let table =
        "CREATE TABLE IF NOT EXISTS orders (name TEXT PRIMARY KEY, buyer TEXT, sku TEXT, expires TEXT)";
    sqlx::query(table).execute(&pool).await?;
    let router = Router::new().route("/spi", get(receive)).with_state(App { key, pool });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    axum::serve(listener, router).await?;
    Ok(())
}

async fn receive(State(app): State<App>, Query(pairs): Query<Vec<(String, String)>>) -> Answer {
    if !is_verified(&app.key, &pairs) {
        return (StatusCode::FORBIDDEN, Json(serde_json::json!({ "code": "403" })));
    }
    match record(&app.pool, &pairs).await {
        Ok(name) => (StatusCode::OK, Json(serde_json::json!({ "instanceId": name }))),
        Err(error) => {
            let text = error.to_string();
            (StatusCode::INTERNAL_SERVER_ERROR, Json(serde_json::json!({ "error": text })))
        }
    }
}

async fn record(pool: &SqlitePool, pairs: &[(String, String)]) -> Result<String, sqlx::Error> {
    let name = value(pairs, "orderBizId");
    let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
    let known: Option<String> = sqlx::query_scalar("SELECT name FROM orders WHERE name = ?")
        .bind(name)
        .fetch_optional(&mut *transaction)
        .await?;
    if known.is_none() {
        sqlx::query("INSERT INTO orders (name, buyer, sku, expires) VALUES (?, ?, ?, ?)")
            .bind(name)
            .bind(value(pairs, "aliUid"))
            .bind(value(pairs, "skuId"))
            .bind(value(pairs, "expiredOn"))
            .execute(&mut *transaction)
            .await?;
    }
    transaction.commit().await?;
    Ok(name.to_owned())
}

fn value<'a>(pairs: &'a [(String, String)], name: &str) -> &'a str {
    pairs.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str()).unwrap_or_default()
}

fn is_verified(key: &str, pairs: &[(String, String)]) -> bool {
    let mut sorted: Vec<_> = pairs.iter().filter(|(name, _)| name != "token").collect();
    sorted.sort();
    let mut digest = Md5::new();
    for (name, value) in sorted {
        digest.update(format!("{name}={value}&"));
    }
    digest.update(format!("key={key}"));
    hex::encode(digest.finalize()) == value(pairs, "token")
}
