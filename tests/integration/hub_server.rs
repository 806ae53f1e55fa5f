//! A small Hugging Face hub on loopback, for one repository. Large files are redirected to another host, as the real
//! one does.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::time::Duration;

use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use sha1::{Digest, Sha1};
use sha2::Sha256;

pub const REPOSITORY: &str = "org/model";
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A request that came.
#[derive(Clone, Debug)]
pub struct Request {
    pub path: String,
    /// The values of the headers of these names.
    pub host: String,
    pub range: Option<String>,
    pub authorization: Option<String>,
}

/// What the hub does wrong with files whose names end in a text, once or always.
pub enum Fault {
    None,
    /// Closes the connection after half of the file, once.
    BreakOnce(&'static str),
    /// Sends half of the file, says so, and goes on slowly, once.
    SlowOnce(&'static str, mpsc::Sender<()>),
    /// Changes the last byte.
    Damage(&'static str),
    /// Sends whole files, whatever range is asked for.
    IgnoreRanges,
    /// Answers everything with a status and an `X-Error-Code`.
    Refuse(u16, &'static str),
}

struct State {
    files: BTreeMap<String, Vec<u8>>,
    /// What the hub says of its files, where it is not the truth.
    listing: Option<Value>,
    fault: Fault,
    requests: Vec<Request>,
}

pub struct HubServer {
    port: u16,
    state: Arc<Mutex<State>>,
}

impl HubServer {
    /// A hub whose repository has the files of a folder.
    pub fn start(folder: &Path) -> Self {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
        let files = entries
            .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
            .collect();
        let state = State { files, listing: None, fault: Fault::None, requests: vec![] };
        let state = Arc::new(Mutex::new(state));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let hub = Self { port: listener.local_addr().unwrap().port(), state: state.clone() };
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client may leave at any time.
                let _ = answer(&state, stream);
            }
        });
        hub
    }

    pub fn endpoint(&self) -> String {
        format!("http://localhost:{}", self.port)
    }

    pub fn put(&self, file: &str, content: impl Into<Vec<u8>>) {
        self.state().files.insert(file.to_owned(), content.into());
    }

    pub fn content(&self, file: &str) -> Vec<u8> {
        self.state().files[file].clone()
    }

    pub fn say(&self, listing: Value) {
        self.state().listing = Some(listing);
    }

    pub fn fail(&self, fault: Fault) {
        self.state().fault = fault;
    }

    /// The requests that came since this was last asked.
    pub fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.state().requests)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

pub fn sha256(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether the repository keeps a file by Git LFS.
fn is_large(file: &str) -> bool {
    file.ends_with(".safetensors") || file.ends_with(".gguf") || file == "tokenizer.json"
}

/// The hub's description of its files, of the API's form.
fn listing(files: &BTreeMap<String, Vec<u8>>) -> Value {
    let describe = |(name, content): (&String, &Vec<u8>)| {
        let blob = [format!("blob {}\0", content.len()).as_bytes(), content].concat();
        let mut file =
            json!({ "rfilename": name, "size": content.len(), "blobId": hex(&Sha1::digest(blob)) });
        if is_large(name) {
            file["lfs"] = json!({ "sha256": sha256(content), "size": content.len(), "pointerSize": 134 });
        }
        file
    };
    json!({ "id": REPOSITORY, "sha": COMMIT, "siblings": files.iter().map(describe).collect::<Vec<_>>() })
}

fn read_request(stream: &TcpStream) -> std::io::Result<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().ok_or(std::io::ErrorKind::UnexpectedEof)??;
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut request = Request { path, host: String::new(), range: None, authorization: None };
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "host" => request.host = value.to_owned(),
            "range" => request.range = Some(value.to_owned()),
            "authorization" => request.authorization = Some(value.to_owned()),
            _ => {}
        }
    }
    Ok(request)
}

fn answer(state: &Mutex<State>, mut stream: TcpStream) -> std::io::Result<()> {
    let request = read_request(&stream)?;
    let mut state = state.lock().unwrap();
    state.requests.push(request.clone());
    if let Fault::Refuse(status, code) = state.fault {
        return head(&mut stream, status, &[("X-Error-Code", code.into()), ("Content-Length", "0".into())]);
    }
    let api = format!("/api/models/{REPOSITORY}/revision/");
    if request.path.starts_with(&api) && request.path.ends_with("?blobs=true") {
        let listing = state.listing.clone().unwrap_or_else(|| listing(&state.files)).to_string();
        head(&mut stream, 200, &[("Content-Length", listing.len().to_string())])?;
        return stream.write_all(listing.as_bytes());
    }
    let large = request.path.strip_prefix("/large/");
    let small = request.path.strip_prefix(&format!("/{REPOSITORY}/resolve/{COMMIT}/"));
    let encoded = large.or(small).unwrap_or_default();
    let file = percent_decode_str(encoded).decode_utf8_lossy().into_owned();
    let Some(mut content) = state.files.get(&file).cloned() else {
        return head(&mut stream, 404, &[("X-Error-Code", "EntryNotFound".into())]);
    };
    if is_large(&file) && large.is_none() {
        let port = stream.local_addr()?.port();
        return head(&mut stream, 302, &[("Location", format!("http://127.0.0.1:{port}/large/{encoded}"))]);
    }
    let (mut end, mut slow) = (content.len(), None);
    match &state.fault {
        Fault::BreakOnce(name) if file.ends_with(name) => {
            end /= 2;
            state.fault = Fault::None;
        }
        Fault::SlowOnce(name, told) if file.ends_with(name) => {
            slow = Some(told.clone());
            state.fault = Fault::None;
        }
        Fault::Damage(name) if file.ends_with(name) => *content.last_mut().unwrap() ^= 1,
        _ => {}
    }
    let range = request.range.filter(|_| !matches!(state.fault, Fault::IgnoreRanges));
    drop(state);
    let from = range.map(|range| range["bytes=".len()..].trim_end_matches('-').parse().unwrap());
    let total = content.len();
    let length = ("Content-Length", (total - from.unwrap_or(0)).to_string());
    match from {
        None => head(&mut stream, 200, &[length])?,
        Some(from) => head(
            &mut stream,
            206,
            &[length, ("Content-Range", format!("bytes {from}-{}/{total}", total - 1))],
        )?,
    }
    let body = &content[from.unwrap_or(0)..end];
    let Some(told) = slow else { return stream.write_all(body) };
    let (first, rest) = body.split_at(total / 2);
    stream.write_all(first)?;
    stream.flush()?;
    told.send(()).unwrap();
    for piece in rest.chunks(512) {
        std::thread::sleep(Duration::from_millis(5));
        stream.write_all(piece)?;
    }
    Ok(())
}

fn head(stream: &mut TcpStream, status: u16, headers: &[(&str, String)]) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {status} Status\r\nConnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all((head + "\r\n").as_bytes())
}
