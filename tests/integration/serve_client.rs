//! fasq-serve as a process, and a client of it.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long anything may take before a test fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Server {
    process: Child,
    pub address: String,
}

impl Server {
    /// Of a fixture, on a free port.
    pub fn start(fixture: &str, args: &[&str]) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(fixture);
        let mut command = Command::new(env!("CARGO_BIN_EXE_fasq-serve"));
        command.arg(folder).args(["--device", "cpu", "--port", "0"]).args(args);
        command.env_remove("RUST_LOG").env_remove("FASQ_API_KEY");
        let mut process = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let line = lines.by_ref().map(Result::unwrap).find(|line| line.starts_with("http://")).unwrap();
        let address = line["http://".len()..].split('/').next().unwrap().to_owned();
        // Nobody reads the log, but it must not fill a pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Self { process, address }
    }

    fn agent() -> ureq::Agent {
        let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(PATIENCE));
        config.build().into()
    }

    /// The status, and the object.
    pub fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let (status, text) = self.post_text(path, &body.to_string(), &[]);
        (status, serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path}: {e}: {text}")))
    }

    pub fn post_text(&self, path: &str, body: &str, headers: &[(&str, &str)]) -> (u16, String) {
        let mut request = Self::agent().post(format!("http://{}{path}", self.address));
        if !headers.iter().any(|(name, _)| *name == "Content-Type") {
            request = request.header("Content-Type", "application/json");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut response = request.send(body).unwrap();
        (response.status().as_u16(), response.body_mut().read_to_string().unwrap())
    }

    pub fn get(&self, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
        let mut request = Self::agent().get(format!("http://{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut response = request.call().unwrap();
        (response.status().as_u16(), response.body_mut().read_to_string().unwrap())
    }

    /// A request whose response is read as it comes.
    pub fn open(&self, path: &str, body: &Value) -> Stream {
        let body = body.to_string();
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).unwrap();
        Stream { lines: BufReader::new(stream) }
    }

    /// The value of a metric, or 0 before it was counted.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics", &[]).1;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Waits until a metric has a value.
    pub fn wait_for(&self, name: &str, value: f64) {
        let began = Instant::now();
        while self.metric(name) != value {
            assert!(began.elapsed() < PATIENCE, "{name} is {}, not {value}", self.metric(name));
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        let status = Command::new("kill").args(["-TERM", &self.process.id().to_string()]).status();
        assert!(status.unwrap().success());
    }

    /// Waits for the end of the process; its exit code.
    pub fn exit_code(&mut self) -> Option<i32> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status.code();
            }
            assert!(began.elapsed() < PATIENCE, "the server does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Server-sent events. Dropping it closes the connection.
pub struct Stream {
    lines: BufReader<TcpStream>,
}

impl Stream {
    /// The data of the next event; none at the end of the connection.
    pub fn next(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            if let Some(data) = line.strip_prefix("data: ") {
                return Some(data.trim_end().to_owned());
            }
        }
    }

    /// The objects up to the end of the stream, which must be marked.
    pub fn chunks(mut self) -> Vec<Value> {
        let mut chunks = vec![];
        loop {
            let data = self.next().expect("[DONE]");
            if data == "[DONE]" {
                return chunks;
            }
            chunks.push(serde_json::from_str(&data).unwrap());
        }
    }
}
