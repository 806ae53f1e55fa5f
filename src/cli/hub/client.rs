//! [`Client`]: requests to the hub, and what its refusals mean for a user.

use std::collections::BTreeMap;
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use ureq::config::RedirectAuthHeaders;
use ureq::http::{Response, StatusCode};
use ureq::tls::TlsConfig;
use ureq::{Agent, Body};

use super::cache::{is_commit, is_hex};
use super::name::HubName;
use super::settings;
use crate::{Error, Result};

/// Time for a connection to be made.
const CONNECT: Duration = Duration::from_secs(30);
/// Time without a byte after which a connection counts as broken.
const SILENCE: Duration = Duration::from_secs(60);
/// Largest answer that lists a repository's files: some 100,000 files.
const LISTING: u64 = 32 << 20;
/// What stays as it is in the path of a URL.
const IN_PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');
const IN_SEGMENT: &AsciiSet = &IN_PATH.add(b'/');

/// The files of a commit.
pub struct Listing {
    pub commit: String,
    /// By path.
    pub files: BTreeMap<String, Remote>,
}

/// A file as the hub describes it.
#[derive(Debug)]
pub struct Remote {
    /// In bytes.
    pub size: u64,
    pub checksum: Checksum,
}

/// The hash of a file's content, in hexadecimal digits; it names the blob too.
#[derive(Debug)]
pub enum Checksum {
    /// Of large files (Git LFS).
    Sha256(String),
    /// Of the others: the SHA-1 of `blob SIZE\0` and the content.
    Git(String),
}

impl Checksum {
    pub fn id(&self) -> &str {
        match self {
            Self::Sha256(id) | Self::Git(id) => id,
        }
    }
}

/// Why a request failed.
pub enum Failure {
    /// Another attempt may succeed.
    Passing(Error),
    Lasting(Error),
}

impl Failure {
    fn into_error(self) -> Error {
        match self {
            Self::Passing(error) | Self::Lasting(error) => error,
        }
    }
}

/// Asks the hub for one repository.
pub struct Client<'a> {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
    name: &'a HubName,
}

impl<'a> Client<'a> {
    /// As the user's environment says.
    pub fn new(name: &'a HubName) -> Result<Self> {
        let endpoint = settings::endpoint()?;
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .https_only(endpoint.starts_with("https://"))
            .tls_config(TlsConfig::builder().root_certs(settings::roots()?).build())
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .timeout_connect(Some(CONNECT))
            .timeout_per_read(Some(SILENCE))
            .user_agent(concat!("fasq/", env!("CARGO_PKG_VERSION")))
            .build()
            .into();
        Ok(Self { agent, endpoint, token: settings::token()?, name })
    }

    /// The files of the revision's commit.
    pub fn listing(&self) -> Result<Listing> {
        let revision = utf8_percent_encode(&self.name.revision, IN_SEGMENT);
        let path = format!("api/models/{}/revision/{revision}?blobs=true", self.name.repository);
        let mut response = self.get(&path, 0).map_err(Failure::into_error)?;
        let body = response.body_mut().with_config().limit(LISTING).read_to_vec();
        let body = body.map_err(|e| self.broken(e))?;
        self.parse(&body)
            .map_err(|why| Error::invalid(self.what(), format!("the hub's list of files: {why}")))
    }

    fn parse(&self, body: &[u8]) -> Result<Listing, String> {
        let answer: Answer = serde_json::from_slice(body).map_err(|e| e.to_string())?;
        if !is_commit(&answer.sha) {
            return Err(format!("commit {:?}", answer.sha));
        }
        let remote = |file: Sibling| {
            let (size, checksum) = match (file.lfs, file.size, file.blob_id) {
                (Some(lfs), ..) => (lfs.size, Checksum::Sha256(lfs.sha256)),
                (None, Some(size), Some(id)) => (size, Checksum::Git(id)),
                _ => return Err(format!("{:?} has no size or no checksum", file.rfilename)),
            };
            let digits = if matches!(checksum, Checksum::Git(_)) { 40 } else { 64 };
            if checksum.id().len() != digits || !is_hex(checksum.id()) {
                return Err(format!("{:?} has the checksum {:?}", file.rfilename, checksum.id()));
            }
            Ok((file.rfilename, Remote { size, checksum }))
        };
        let files = answer.siblings.into_iter().map(remote).collect::<Result<_, _>>()?;
        Ok(Listing { commit: answer.sha, files })
    }

    /// A file's content from a byte on.
    pub fn file(&self, commit: &str, file: &str, from: u64) -> Result<Response<Body>, Failure> {
        let file = utf8_percent_encode(file, IN_PATH);
        self.get(&format!("{}/resolve/{commit}/{file}", self.name.repository), from)
    }

    fn get(&self, path: &str, from: u64) -> Result<Response<Body>, Failure> {
        let mut request = self.agent.get(format!("{}/{path}", self.endpoint));
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if from > 0 {
            request = request.header("range", format!("bytes={from}-"));
        }
        let response = request.call().map_err(|e| Failure::Passing(self.broken(e)))?;
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(response),
            status => Err(self.refusal(status, &response)),
        }
    }

    /// What errors name.
    pub fn what(&self) -> String {
        self.name.to_string()
    }

    /// A connection that was not made, or broke.
    pub fn broken(&self, why: impl std::fmt::Display) -> Error {
        let hint = "check the network and run again, what is downloaded is kept";
        Error::invalid(self.what(), format!("{}: {why}: {hint}", self.endpoint))
    }

    /// What a status other than success means. The hub's own words are in headers; for a repository that a user may
    /// not see it answers as for one that is not there.
    fn refusal(&self, status: StatusCode, response: &Response<Body>) -> Failure {
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
        let page = format!("{}/{}", self.endpoint, self.name.repository);
        let why = match (status.as_u16(), header("x-error-code")) {
            (_, "GatedRepo") => {
                format!("gated: accept the terms at {page}, and set HF_TOKEN to a token of that account")
            }
            (_, "RevisionNotFound") => {
                format!("no such revision: {page}/tree/main shows branches and tags")
            }
            (_, "EntryNotFound") => format!("no such file: {page}/tree/{} lists them", self.name.revision),
            (401, _) if self.token.is_some() => {
                "the hub does not know the token: check HF_TOKEN, or what `hf auth login` stored".to_owned()
            }
            (401 | 404, _) => {
                "no such repository, or a private one: check the name, and set HF_TOKEN if it is private"
                    .to_owned()
            }
            (403, _) => "not allowed: set HF_TOKEN to a token that may read it".to_owned(),
            (429, _) => "too many requests: wait, or set HF_TOKEN".to_owned(),
            _ => format!("the hub answered {status}: try again later"),
        };
        let said: String = header("x-error-message").chars().take(200).collect();
        let why = if said.is_empty() { why } else { format!("{why} (the hub says: {said})") };
        let error = Error::invalid(self.what(), why);
        match status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            true => Failure::Passing(error),
            false => Failure::Lasting(error),
        }
    }
}

/// The part of the hub's answer that describes a commit's files.
#[derive(Deserialize)]
struct Answer {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}
