//! What the user's environment says of the hub, in the variables of the hub's own clients
//! (<https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables>). An empty variable counts as
//! none.

use std::path::PathBuf;

use ureq::tls::{PemItem, RootCerts, parse_pem};

use crate::checkpoint::read_text;
use crate::{Error, Result};

/// The cache's folder: `HF_HUB_CACHE`, else `hub` in the folder of the hub's clients.
pub fn cache() -> Result<PathBuf> {
    let folder = path("HF_HUB_CACHE").map_or_else(|| Ok::<_, Error>(home()?.join("hub")), Ok)?;
    // Links are resolved from the folder that holds them, not from this process's.
    std::path::absolute(&folder).map_err(Error::io(&folder))
}

/// The folder of the hub's clients: `HF_HOME`, else `huggingface` in the user's cache folder.
fn home() -> Result<PathBuf> {
    if let Some(home) = path("HF_HOME") {
        return Ok(home);
    }
    let caches = path("XDG_CACHE_HOME").or_else(|| dirs::home_dir().map(|home| home.join(".cache")));
    let folder = caches.map(|caches| caches.join("huggingface"));
    folder.ok_or_else(|| Error::invalid("HF_HOME", "it is not set, and there is no home folder"))
}

/// The hub's address, without a slash at its end: `HF_ENDPOINT`, else the public one's.
pub fn endpoint() -> Result<String> {
    const VARIABLE: &str = "HF_ENDPOINT";
    let endpoint = text(VARIABLE)?.unwrap_or_else(|| "https://huggingface.co".to_owned());
    match endpoint.starts_with("https://") || endpoint.starts_with("http://") {
        true => Ok(endpoint.trim_end_matches('/').to_owned()),
        false => Err(Error::mismatch(VARIABLE, "https://HOST", format!("{endpoint:?}"))),
    }
}

/// Whether `HF_HUB_OFFLINE` forbids the hub's clients to use the network.
pub fn is_offline() -> Result<bool> {
    let value = text("HF_HUB_OFFLINE")?.map(|value| value.to_uppercase());
    Ok(value.is_some_and(|value| ["1", "ON", "YES", "TRUE"].contains(&value.as_str())))
}

/// The user's token, if there is one: `HF_TOKEN`, or what `hf auth login` stored.
pub fn token() -> Result<Option<String>> {
    const VARIABLE: &str = "HF_TOKEN";
    let (origin, token) = match text(VARIABLE)? {
        Some(token) => (VARIABLE.to_owned(), token),
        None => {
            let path = path("HF_TOKEN_PATH").map_or_else(|| Ok::<_, Error>(home()?.join("token")), Ok)?;
            (path.display().to_string(), read_text(&path)?.unwrap_or_default().trim().to_owned())
        }
    };
    match token.bytes().all(|b| b.is_ascii_graphic()) {
        true => Ok(Some(token).filter(|token| !token.is_empty())),
        false => Err(Error::invalid(origin, "a token is one word of ASCII characters")),
    }
}

/// The certificates that vouch for a host: those of the file `SSL_CERT_FILE`, as for a company's proxy, else Mozilla's.
pub fn roots() -> Result<RootCerts> {
    let Some(path) = path("SSL_CERT_FILE") else { return Ok(RootCerts::WebPki) };
    let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
    let items = parse_pem(&bytes).collect::<Result<Vec<_>, _>>();
    let items = items.map_err(|e| Error::invalid(path.display().to_string(), e))?;
    let certificates = items.into_iter().filter_map(|item| match item {
        PemItem::Certificate(certificate) => Some(certificate),
        _ => None,
    });
    let certificates: Vec<_> = certificates.collect();
    match certificates.is_empty() {
        false => Ok(RootCerts::from(certificates)),
        true => Err(Error::invalid(path.display().to_string(), "it holds no certificate")),
    }
}

fn path(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// A variable's text, trimmed.
fn text(variable: &str) -> Result<Option<String>> {
    let Some(value) = std::env::var_os(variable) else { return Ok(None) };
    let value = value.into_string().map_err(|_| Error::invalid(variable, "it is not UTF-8"))?;
    Ok(Some(value.trim().to_owned()).filter(|value| !value.is_empty()))
}
