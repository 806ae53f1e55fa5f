//! [`Server`]: routes, and the life of the server from its first connection to its end.

use std::net::TcpListener;
use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::DefaultBodyLimit;
use axum::http::{Method, StatusCode, Uri};
use axum::routing::{get, post};
use axum::{Router, middleware};
use tokio::sync::oneshot;

use super::app::App;
use super::chat::{apply_template, chat_completions};
use super::completions::completions;
use super::error::ApiError;
use super::{access, models};
use crate::{Error, Result};

/// Bytes of a request's body at most: several times the text of the longest context.
const BODY_BYTES: usize = 8 << 20;
/// How long the last events may take to reach their clients.
const LAST_EVENTS: Duration = Duration::from_secs(2);

/// Who may ask.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// The key that every request needs.
    pub api_key: Option<String>,
    /// Origins of pages that may ask; `*` for any.
    pub cors_origins: Vec<String>,
}

/// A server that listens already.
pub struct Server {
    pub listener: TcpListener,
    pub app: Arc<App>,
    pub access: Access,
    /// How long requests may go on after a signal to end.
    pub shutdown_timeout: Duration,
}

impl Server {
    /// Serves until SIGTERM or Ctrl-C; then what has begun may end within the timeout, or at once after a second signal.
    ///
    /// # Errors
    /// The system refuses a socket, a signal or a thread, or an origin is none.
    pub fn run(self) -> Result<()> {
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(threads).build();
        runtime.map_err(Error::io("the server's runtime"))?.block_on(self.serve())
    }

    async fn serve(self) -> Result<()> {
        let Self { listener, app, access, shutdown_timeout } = self;
        let load = app.submitter.load().clone();
        let router = router(app, &access)?;
        let mut signals = Signals::new().map_err(Error::io("signals"))?;
        let socket = |e| Error::io("socket")(e);
        listener.set_nonblocking(true).map_err(socket)?;
        let listener = tokio::net::TcpListener::from_std(listener).map_err(socket)?;
        let (close, closed) = oneshot::channel::<()>();
        let serving = axum::serve(listener, router).with_graceful_shutdown(async move {
            // An error means that the sender is gone, which it is only at the end.
            let _ = closed.await;
        });
        let ending = async {
            signals.next().await;
            log::info!("no new requests: the server shuts down");
            load.close();
            let _ = close.send(());
            tokio::select! {
                () = tokio::time::sleep(shutdown_timeout) => {}
                () = signals.next() => {}
            }
            load.end();
            tokio::time::sleep(LAST_EVENTS).await;
        };
        tokio::select! {
            served = serving => served.map_err(socket),
            () = ending => Ok(()),
        }
    }
}

/// Every route. What has no route, or not with that method, is an error of the API's form too.
fn router(app: Arc<App>, access: &Access) -> Result<Router> {
    let mut router = Router::new()
        .route("/v1/models", get(models::models))
        .route("/v1/models/{*name}", get(models::model))
        .route("/v1/chat/completions", post(chat_completions))
        .route("/v1/completions", post(completions))
        .route("/tokenize", post(models::tokenize))
        .route("/detokenize", post(models::detokenize))
        .route("/apply-template", post(apply_template))
        .route("/health", get(models::health))
        .route("/live", get(models::live))
        .route("/metrics", get(models::metrics))
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES))
        .with_state(app);
    if let Some(key) = &access.api_key {
        let key: Arc<str> = key.as_str().into();
        router = router.layer(middleware::from_fn_with_state(key, access::authorize));
    }
    match access.cors_origins.is_empty() {
        true => Ok(router),
        // Outside of the key: a browser asks without it whether it may ask.
        false => Ok(router.layer(access::cors(&access.cors_origins)?)),
    }
}

async fn not_found(uri: Uri) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, format!("no such path: {}", uri.path()))
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let message = format!("{}: method {method} is not allowed", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message)
}

/// SIGTERM and Ctrl-C.
struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    #[cfg(unix)]
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let [terminate, interrupt] = [signal(SignalKind::terminate()), signal(SignalKind::interrupt())];
        Ok(Self { terminate: terminate?, interrupt: interrupt? })
    }

    #[cfg(unix)]
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    #[cfg(not(unix))]
    fn new() -> std::io::Result<Self> {
        Ok(Self {})
    }

    /// Waits for ever where the system has no such signal.
    #[cfg(not(unix))]
    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
