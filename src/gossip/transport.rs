//! Carries messages to peers: one thread, all connections on it, nothing of PostgreSQL in it.
//!
//! The thread takes plain requests and hands back plain outcomes; it wakes the process through a
//! pipe that the main loop watches beside its latch. Every request has one deadline that covers
//! name resolution, connecting, TLS, logging in and the query, so a peer that accepts and never answers
//! costs its own request and nothing else.

use std::collections::HashMap;
use std::io::Read;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_postgres::config::SslMode as ClientSslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, Statement};

use super::credentials::Credentials;
use super::protocol::{Message, OLDEST_VERSION, VERSION};
use super::tls;
use crate::node::peer::{Access, Endpoint, SslMode};

/// A connection nobody used for this long is closed; by the far side, which may not be told, a little
/// later.
const IDLE: Duration = Duration::from_secs(60);
const IDLE_SESSION: Duration = Duration::from_secs(90);

/// How long the far side waits for a row that somebody holds. Two sessions that gossip with each
/// other in transactions of their own can wait for each other, which neither server can see.
const LOCK_TIMEOUT: &str = "1s";

/// A message for a peer.
pub struct Request {
    pub peer: String,
    /// How to reach it; a change of it makes a new connection.
    pub access: Arc<Access>,
    pub message: Message,
    pub timeout: Duration,
}

/// What became of it.
pub struct Outcome {
    pub peer: String,
    pub answer: Result<Answer, String>,
    pub taken: Duration,
}

pub struct Answer {
    pub bytes: Vec<u8>,
    pub sent_bytes: usize,
}

/// The process's end of the thread. Dropping it ends the thread.
pub struct Transport {
    requests: UnboundedSender<Request>,
    outcomes: Receiver<Outcome>,
    wake: UnixStream,
}

impl Transport {
    /// Starts the thread. It runs with all signals blocked: they belong to the main thread.
    pub fn start() -> std::io::Result<Self> {
        let (requests, incoming) = unbounded_channel();
        let (results, outcomes) = channel();
        let (wake, waker) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        waker.set_nonblocking(true)?;
        with_signals_blocked(|| {
            std::thread::Builder::new()
                .name("gossip transport".into())
                .spawn(move || run(incoming, results, waker))
        })?;
        Ok(Self {
            requests,
            outcomes,
            wake,
        })
    }

    /// Becomes readable when an outcome is there.
    pub fn wake_fd(&self) -> RawFd {
        self.wake.as_raw_fd()
    }

    /// Hands over a request; its outcome follows within its timeout. False when the thread is gone.
    pub fn send(&self, request: Request) -> bool {
        self.requests.send(request).is_ok()
    }

    /// Outcomes that have arrived.
    pub fn take(&mut self) -> Vec<Outcome> {
        let mut signals = [0; 64];
        while matches!(self.wake.read(&mut signals), Ok(count) if count > 0) {}
        self.outcomes.try_iter().collect()
    }
}

fn with_signals_blocked<T>(work: impl FnOnce() -> T) -> T {
    // SAFETY: plain signal-mask calls on values of this frame; the mask is restored.
    unsafe {
        let mut all = std::mem::zeroed();
        let mut before = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        let result = work();
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
        result
    }
}

fn run(incoming: UnboundedReceiver<Request>, results: Sender<Outcome>, waker: UnixStream) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(serve(incoming, results, waker)),
        // Dropping `incoming` makes every later `send` say that the thread is gone.
        Err(_) => drop(incoming),
    }
}

/// One task per peer, so that a slow peer holds up only its own messages.
async fn serve(
    mut incoming: UnboundedReceiver<Request>,
    results: Sender<Outcome>,
    waker: UnixStream,
) {
    let waker = Arc::new(waker);
    let mut peers: HashMap<String, UnboundedSender<Request>> = HashMap::new();
    while let Some(request) = incoming.recv().await {
        let request = match peers.get(&request.peer) {
            Some(peer) => match peer.send(request) {
                Ok(()) => continue,
                // The task ended for idleness.
                Err(returned) => returned.0,
            },
            None => request,
        };
        let (sender, receiver) = unbounded_channel();
        peers.insert(request.peer.clone(), sender.clone());
        tokio::spawn(serve_peer(receiver, results.clone(), Arc::clone(&waker)));
        // The receiver was just handed to its task.
        let _ = sender.send(request);
    }
}

async fn serve_peer(
    mut incoming: UnboundedReceiver<Request>,
    results: Sender<Outcome>,
    waker: Arc<UnixStream>,
) {
    let mut connection = None;
    while let Ok(Some(request)) = tokio::time::timeout(IDLE, incoming.recv()).await {
        let started = Instant::now();
        let answer =
            tokio::time::timeout(request.timeout, exchange(&mut connection, &request)).await;
        let answer = answer.unwrap_or_else(|_| {
            Err(format!(
                "no answer within {} ms",
                request.timeout.as_millis()
            ))
        });
        if answer.is_err() {
            connection = None;
        }
        let outcome = Outcome {
            peer: request.peer,
            answer,
            taken: started.elapsed(),
        };
        if results.send(outcome).is_err() {
            return;
        }
        // A full pipe is readable already.
        let _ = std::io::Write::write(&mut &*waker, &[1]);
    }
}

struct Connection {
    access: Arc<Access>,
    client: Client,
    exchange: Statement,
    /// What the peer understands: a peer that refuses this node's version is asked in the one before.
    version: u8,
}

async fn exchange(
    connection: &mut Option<Connection>,
    request: &Request,
) -> Result<Answer, String> {
    let is_usable = connection.as_ref().is_some_and(|connection| {
        !connection.client.is_closed() && connection.access == request.access
    });
    if !is_usable {
        *connection = None;
        *connection = Some(connect(request).await?);
    }
    let Some(connection) = connection else {
        return Err("not connected".into());
    };
    let encode = |version| {
        let message = request.message.encode(version);
        message.map_err(|error| error.to_string())
    };
    let mut message = encode(connection.version)?;
    let mut answer = ask(connection, &message).await;
    if is_refused_form(&answer) && connection.version > OLDEST_VERSION {
        connection.version -= 1;
        message = encode(connection.version)?;
        answer = ask(connection, &message).await;
    }
    Ok(Answer {
        bytes: answer.map_err(|error| describe(&error))?,
        sent_bytes: message.len(),
    })
}

async fn ask(connection: &Connection, message: &[u8]) -> Result<Vec<u8>, tokio_postgres::Error> {
    let row = (connection.client)
        .query_one(&connection.exchange, &[&message])
        .await?;
    row.try_get(0)
}

fn is_refused_form(answer: &Result<Vec<u8>, tokio_postgres::Error>) -> bool {
    let refusal = answer.as_ref().err().and_then(|error| error.code());
    refusal == Some(&SqlState::INVALID_BINARY_REPRESENTATION)
}

async fn connect(request: &Request) -> Result<Connection, String> {
    let access = Arc::clone(&request.access);
    // A disk that hangs must not hold up the other peers.
    let credentials = tokio::task::spawn_blocking(move || Credentials::read(&access))
        .await
        .map_err(|failure| failure.to_string())??;
    let client = connect_somewhere(request, &credentials).await?;
    let exchange = client
        .prepare("SELECT coord.gossip_exchange($1)")
        .await
        .map_err(|error| describe(&error))?;
    Ok(Connection {
        access: Arc::clone(&request.access),
        client,
        exchange,
        version: VERSION,
    })
}

/// The first place that answers. Each is tried by itself, for the password file may have another
/// password for each.
async fn connect_somewhere(request: &Request, credentials: &Credentials) -> Result<Client, String> {
    let access = &request.access;
    let mut reasons = Vec::new();
    for endpoint in &access.endpoints {
        match connect_to(endpoint, request, credentials).await {
            Ok(client) => return Ok(client),
            Err(error) => {
                let mut reason = describe(&error);
                if credentials.lacks_password(access, endpoint) {
                    reason.push_str(" (no line of the passfile fits)");
                }
                reasons.push((endpoint, reason));
            }
        }
    }
    Err(explain(reasons))
}

/// Which place failed why; with a single one it is clear which.
fn explain(mut reasons: Vec<(&Endpoint, String)>) -> String {
    match reasons.len() {
        0 => "its server has no option host".into(),
        1 => reasons.remove(0).1,
        _ => {
            let of_places: Vec<String> = reasons
                .into_iter()
                .map(|(Endpoint { host, port }, reason)| format!("{host} port {port}: {reason}"))
                .collect();
            of_places.join("; ")
        }
    }
}

async fn connect_to(
    endpoint: &Endpoint,
    request: &Request,
    credentials: &Credentials,
) -> Result<Client, tokio_postgres::Error> {
    let mut config = client_config(endpoint, &request.access);
    if let Some(password) = credentials.password(&request.access, endpoint) {
        config.password(password);
    }
    let timeout = request.timeout.as_millis();
    config
        .application_name("pg_test gossip")
        .connect_timeout(request.timeout)
        .keepalives_idle(Duration::from_secs(30))
        .tcp_user_timeout(request.timeout)
        // The far side gives up when this side would not read the answer any more. What it learns it compares
        // with what has just committed, whatever its database takes as a default.
        .options(format!(
            "-c statement_timeout={timeout} -c lock_timeout={LOCK_TIMEOUT} \
             -c idle_session_timeout={} -c search_path=pg_catalog \
             -c default_transaction_isolation=read\\ committed",
            IDLE_SESSION.as_millis()
        ));
    let (client, connection) = config.connect(credentials.connector.clone()).await?;
    // Ends by itself when the client is dropped or the peer goes away; the client then says so.
    tokio::spawn(connection);
    Ok(client)
}

/// Values are set one by one, so nothing in them can be taken for another option.
fn client_config(endpoint: &Endpoint, access: &Access) -> Config {
    let mut config = Config::new();
    config
        .host(&endpoint.host)
        .port(endpoint.port)
        .ssl_mode(ssl_mode(endpoint, access));
    if let Some(database) = &access.database {
        config.dbname(database);
    }
    if let Some(user) = &access.user {
        config.user(user);
    }
    config
}

fn ssl_mode(endpoint: &Endpoint, access: &Access) -> ClientSslMode {
    match access.tls.mode {
        // As in libpq: what cannot be encrypted is not asked to be.
        _ if endpoint.is_socket() => ClientSslMode::Disable,
        SslMode::Disable => ClientSslMode::Disable,
        SslMode::Prefer => ClientSslMode::Prefer,
        // What else is verified is the connector's part.
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => ClientSslMode::Require,
    }
}

/// What went wrong, in words for an administrator; the client library never names the password.
fn describe(error: &tokio_postgres::Error) -> String {
    if let Some(reported) = error.as_db_error() {
        let mut text = format!("{}: {}", reported.code().code(), reported.message());
        // Both are sentences.
        let sentences: Vec<&str> = [reported.detail(), reported.hint()]
            .into_iter()
            .flatten()
            .collect();
        if !sentences.is_empty() {
            text = format!("{text}: {}", sentences.join(" "));
        }
        return text;
    }
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = tls::reason(cause).unwrap_or_else(|| cause.to_string());
        text = format!("{text}: {cause_text}");
        source = cause.source();
    }
    text
}
