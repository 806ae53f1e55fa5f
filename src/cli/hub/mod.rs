//! Models of the Hugging Face hub by name: the one place from which a program of ours uses the network, and only for a
//! name that begins with `hf:`.
//!
//! Only the files of a model's folder are downloaded, the configuration first: a model that FASQ cannot run is refused
//! before its weights come. They go to the cache that the hub's own clients use; a name whose files are all there is answered
//! without the network. This asks by plain requests, because the hub's crate (`hf-hub` 1.0) neither resumes nor checks
//! what it downloads and brings an async runtime.

mod cache;
mod client;
mod download;
mod name;
mod settings;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use indicatif::{DecimalBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

use self::cache::Cache;
use self::client::{Client, Listing, Remote};
use self::download::Download;
use self::name::{HubName, PREFIX, is_model_file};
use super::{interrupt_flag, note};
use crate::checkpoint::{INDEX_FILE, WEIGHTS_FILE, indexed_files, read_text};
use crate::config::ModelConfig;
use crate::{Error, Result};

const CONFIG_FILE: &str = "config.json";
/// What a model's folder holds beside weights and config.json, where it does.
const SIDE_FILES: [&str; 8] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "added_tokens.json",
    "special_tokens_map.json",
    "quantize_config.json",
    "quant_config.json",
];
/// Largest size of a file that is not weights, in bytes: it is read whole.
const SIDE_FILE_BYTES: u64 = 256 << 20;

/// Where a model is on this machine: a path as it is; the name of a model on the hub (`hf:ORG/NAME`) once its files are
/// downloaded, with progress on stderr unless `quiet`. A path that exists is never taken for a name.
pub fn local(model: &Path, quiet: bool) -> Result<PathBuf> {
    match model.to_str().filter(|text| text.starts_with(PREFIX) && !model.exists()) {
        Some(text) => resolve(&text.parse()?, quiet),
        None => Ok(model.to_owned()),
    }
}

fn resolve(name: &HubName, quiet: bool) -> Result<PathBuf> {
    let (cache, offline) = (Cache::new(name)?, settings::is_offline()?);
    if let Some(commit) = cache.commit() {
        let origin = if offline { Origin::Offline } else { Origin::Cache };
        if let Some(path) = (Snapshot { name, cache: &cache, commit: &commit, origin }).model()? {
            return Ok(path);
        }
    }
    if offline {
        let why = format!("{} does not have all of it, and HF_HUB_OFFLINE is set", cache.folder().display());
        return Err(Error::invalid(name.to_string(), why));
    }
    let client = Client::new(name)?;
    let listing = client.listing()?;
    let hub = Hub { client: &client, listing: &listing, quiet };
    let snapshot = Snapshot { name, cache: &cache, commit: &listing.commit, origin: Origin::Hub(hub) };
    let path = snapshot.model();
    if matches!(path, Err(Error::Interrupted)) && !quiet {
        note(&format!("{} holds what is downloaded: run again to continue", cache.folder().display()));
    }
    let path = path?.ok_or_else(|| Error::invalid(name.to_string(), "not all of it was downloaded"))?;
    cache.remember(&listing.commit)?;
    Ok(path)
}

/// The files of one commit.
struct Snapshot<'a> {
    name: &'a HubName,
    cache: &'a Cache,
    commit: &'a str,
    origin: Origin<'a>,
}

/// Where the files of a commit are to be had.
enum Origin<'a> {
    /// In the cache, which knows of optional files too whether the commit has them.
    Cache,
    /// In the cache and nowhere else: optional files that it lacks, as where another program filled it, are done without.
    Offline,
    /// On the hub, where the cache lacks them.
    Hub(Hub<'a>),
}

struct Hub<'a> {
    client: &'a Client<'a>,
    listing: &'a Listing,
    quiet: bool,
}

/// Whether a model can do without a file.
#[derive(Clone, Copy, PartialEq)]
enum Need {
    Required,
    Optional,
}

impl Snapshot<'_> {
    /// The folder or file of the model once every file of it is there; none if the cache lacks one and it is the only
    /// origin.
    fn model(&self) -> Result<Option<PathBuf>> {
        let folder = self.cache.snapshot(self.commit);
        if let Some(file) = &self.name.file {
            let parts = HubName::parts(file);
            return Ok(self.get(&parts, Need::Required)?.then(|| folder.join(&parts[0])));
        }
        if !self.get(&[CONFIG_FILE], Need::Required)? {
            return Ok(None);
        }
        let config = read_text(&folder.join(CONFIG_FILE))?.unwrap_or_default();
        ModelConfig::parse(&config, None).map_err(|e| Error::invalid(self.name.to_string(), e))?;
        let complete = self.get(&SIDE_FILES, Need::Optional)? && self.get(&[WEIGHTS_FILE], Need::Optional)?;
        if !complete || folder.join(WEIGHTS_FILE).exists() {
            return Ok(complete.then_some(folder));
        }
        if !self.get(&[INDEX_FILE], Need::Required)? {
            return Ok(None);
        }
        let index = read_text(&folder.join(INDEX_FILE))?.unwrap_or_default();
        let shards = indexed_files(&index).map_err(|e| Error::invalid(self.name.to_string(), e))?;
        let shards: Vec<String> = shards.into_iter().collect();
        Ok(self.get(&shards, Need::Required)?.then_some(folder))
    }

    /// Downloads those of the files that the cache lacks; false if there are such files and no hub.
    fn get(&self, files: &[impl AsRef<str>], need: Need) -> Result<bool> {
        let folder = self.cache.snapshot(self.commit);
        let known = |file: &str| match need {
            Need::Required => folder.join(file).exists(),
            Need::Optional if matches!(self.origin, Origin::Offline) => true,
            Need::Optional => folder.join(file).exists() || self.cache.is_absent(self.commit, file),
        };
        let missing: Vec<&str> = files.iter().map(AsRef::as_ref).filter(|file| !known(file)).collect();
        match &self.origin {
            Origin::Hub(hub) => self.fetch(hub, &missing, need).map(|()| true),
            Origin::Cache | Origin::Offline => Ok(missing.is_empty()),
        }
    }

    fn fetch(&self, hub: &Hub<'_>, missing: &[&str], need: Need) -> Result<()> {
        let mut listed = Vec::new();
        for file in missing {
            match hub.listing.files.get(*file) {
                Some(remote) => listed.push((*file, self.checked_size(file, remote)?)),
                None if need == Need::Optional => self.cache.remember_absent(self.commit, file)?,
                None => return Err(self.lacks(file, hub.listing)),
            }
        }
        if listed.is_empty() {
            return Ok(());
        }
        let bytes = listed.iter().fold(0u64, |sum, (_, remote)| sum.saturating_add(remote.size));
        if !hub.quiet {
            let files =
                if let [(file, _)] = listed[..] { file.into() } else { format!("{} files", listed.len()) };
            note(&format!("{}: downloading {files}, {}", self.name, DecimalBytes(bytes)));
        }
        let bar = progress_bar(bytes, hub.quiet);
        let download =
            Download { client: hub.client, commit: self.commit, bar: &bar, stop: interrupt_flag()? };
        let result = listed.iter().try_for_each(|(file, remote)| self.fetch_one(&download, file, remote));
        bar.finish_and_clear();
        result
    }

    fn fetch_one(&self, download: &Download<'_>, file: &str, remote: &Remote) -> Result<()> {
        let id = remote.checksum.id();
        let _lock = self.cache.lock(id)?;
        let blob = self.cache.blob(id);
        download.bar.set_message(file.to_owned());
        match blob.exists() {
            true => download.bar.inc(remote.size),
            false => download.run(file, remote, &blob)?,
        }
        self.cache.link(id, self.commit, file)
    }

    /// A listed file, unless it is too large for one that is read whole.
    fn checked_size<'r>(&self, file: &str, remote: &'r Remote) -> Result<&'r Remote> {
        let is_weights = is_model_file(file) || file.ends_with(".safetensors");
        match is_weights || remote.size <= SIDE_FILE_BYTES {
            true => Ok(remote),
            false => {
                let what = format!("{}: {file}", self.name);
                Err(Error::mismatch(what, format!("at most {SIDE_FILE_BYTES} bytes"), remote.size))
            }
        }
    }

    /// The error for a repository that has no such file; it names the models in single files that it has.
    fn lacks(&self, file: &str, listing: &Listing) -> Error {
        let mut models = listing.files.keys().filter(|path| is_model_file(path));
        let why = match models.next() {
            Some(first) => format!(
                "no {file} in this repository; {} other files are models, one is {}/{first}",
                1 + models.count(),
                self.name
            ),
            None if file == INDEX_FILE => {
                format!("neither {WEIGHTS_FILE} nor {INDEX_FILE} in this repository")
            }
            None => format!("no {file} in this repository"),
        };
        Error::invalid(self.name.to_string(), why)
    }
}

fn progress_bar(bytes: u64, quiet: bool) -> ProgressBar {
    let bar = ProgressBar::new(bytes);
    if quiet || !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    let template =
        "{bar:30} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta} left  {wide_msg}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}
