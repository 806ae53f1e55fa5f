//! fasq-run's chat: turn by turn, at a terminal or from a pipe.

use std::io::{IsTerminal, stdin};
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use clap::Args;
use rustyline::error::ReadlineError;
use rustyline::{Behavior, Config, DefaultEditor};
use serde_json::Value;

use super::writer::Writer;
use super::{note, one_line};
use crate::backend::Backend;
use crate::checkpoint::Assets;
use crate::config::ModelConfig;
use crate::generate::{ChatTemplate, Message, StopReason, Tokenizer};
use crate::{Error, Result};

#[derive(Args)]
#[command(next_help_heading = "Chat template")]
pub struct TemplateArgs {
    /// A variable of the model's chat template, such as enable_thinking=false: JSON, or else text; may be given more
    /// than once
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    template_var: Vec<(String, Value)>,
    /// Let the model think before it answers, where its template can say so
    #[arg(long)]
    think: bool,
    /// Let it answer at once
    #[arg(long, conflicts_with = "think")]
    no_think: bool,
}

/// The variables by which chat templates ask whether the model thinks.
const THINKING: [&str; 2] = ["enable_thinking", "thinking"];

impl TemplateArgs {
    /// The model's template with these variables.
    pub fn open(&self, assets: &Assets, config: &ModelConfig, tokenizer: &Tokenizer) -> Result<ChatTemplate> {
        let thinks = (self.think || self.no_think).then_some(Value::Bool(self.think));
        let thinking =
            thinks.iter().flat_map(|thinks| THINKING.map(|name| (name.to_owned(), thinks.clone())));
        let variables = thinking.chain(self.template_var.iter().cloned()).collect();
        Ok(ChatTemplate::new(assets, config, tokenizer)?.with(variables))
    }
}

fn variable(text: &str) -> Result<(String, Value), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => {
            let json = serde_json::from_str(value);
            Ok((name.to_owned(), json.unwrap_or_else(|_| Value::String(value.to_owned()))))
        }
        _ => Err("expected NAME=VALUE".into()),
    }
}

const HELP: &str = "\
/reset   forget the conversation
/help    show this
Ctrl-C   stop the answer
Ctrl-D   leave";

/// Answers `message`, or messages line by line until there are no more.
pub fn chat<B: Backend>(
    writer: &mut Writer<'_, B>,
    template: &ChatTemplate,
    system: Option<&str>,
    message: Option<&str>,
) -> Result<()> {
    let start: Vec<Message> = system.map(|text| Message::new("system", text)).into_iter().collect();
    let mut messages = start.clone();
    if let Some(message) = message {
        return match answer(writer, template, &mut messages, message)? {
            Some(StopReason::Cancelled) => Err(Error::Interrupted),
            _ => Ok(()),
        };
    }
    writer.output.end_lines();
    let mut lines = Lines::open()?;
    if lines.at_terminal() {
        writer.output.remark("/help for help, Ctrl-D to leave");
    }
    while let Some(line) = lines.next()? {
        match line.trim() {
            "" => {}
            "/help" => note(HELP),
            "/reset" => messages = start.clone(),
            text => match answer(writer, template, &mut messages, text) {
                Ok(Some(StopReason::Cancelled)) if !lines.at_terminal() => return Err(Error::Interrupted),
                // A person can go on after a mistake, and as if nothing had been said where the device failed; a
                // script cannot see that there was one.
                Err(error @ (Error::Mismatch { .. } | Error::Invalid { .. } | Error::Backend { .. }))
                    if lines.at_terminal() =>
                {
                    note(&format!("error: {}", one_line(&error)));
                }
                result => drop(result?),
            },
        }
        writer.interrupted.store(false, Ordering::Relaxed);
    }
    Ok(())
}

/// One turn: the user's message and the model's answer, both of which join the conversation; why the answer ended.
fn answer<B: Backend>(
    writer: &mut Writer<'_, B>,
    template: &ChatTemplate,
    messages: &mut Vec<Message>,
    message: &str,
) -> Result<Option<StopReason>> {
    let before = messages.len();
    messages.push(Message::new("user", message));
    let written = template
        .render(messages, true)
        .and_then(|text| writer.tokenizer.encode(&text, false))
        .and_then(|prompt| writer.write(&prompt));
    match written {
        Ok((text, reason)) => {
            messages.push(Message::new("assistant", text));
            if reason == Some(StopReason::Context) {
                writer.output.remark("the context is full: /reset begins anew");
            }
            Ok(reason)
        }
        Err(error) => {
            messages.truncate(before);
            Err(error)
        }
    }
}

/// The user's lines.
enum Lines {
    Terminal { editor: Box<DefaultEditor>, history: Option<PathBuf> },
    Pipe(std::io::Lines<std::io::StdinLock<'static>>),
}

impl Lines {
    fn open() -> Result<Self> {
        if !stdin().is_terminal() {
            return Ok(Self::Pipe(stdin().lines()));
        }
        // With stdout in a file, the line editor still talks to the terminal.
        let config = Config::builder().behavior(Behavior::PreferTerm).auto_add_history(true).build();
        let mut editor = DefaultEditor::with_config(config).map_err(|e| Error::invalid("terminal", e))?;
        let history = dirs::data_dir().map(|folder| folder.join("fasq").join("history.txt"));
        if let Some(file) = history.as_ref().filter(|file| file.exists())
            && let Err(error) = editor.load_history(file)
        {
            log::warn!("{}: {error}", file.display());
        }
        Ok(Self::Terminal { editor: Box::new(editor), history })
    }

    fn at_terminal(&self) -> bool {
        matches!(self, Self::Terminal { .. })
    }

    fn next(&mut self) -> Result<Option<String>> {
        match self {
            Self::Pipe(lines) => lines.next().transpose().map_err(Error::io("stdin")),
            Self::Terminal { editor, .. } => loop {
                match editor.readline("> ") {
                    Ok(line) => return Ok(Some(line)),
                    Err(ReadlineError::Eof) => return Ok(None),
                    Err(ReadlineError::Interrupted) => note("Ctrl-D to leave"),
                    Err(error) => return Err(Error::invalid("terminal", error)),
                }
            },
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let Self::Terminal { editor, history: Some(file) } = self else { return };
        let saved = file.parent().map_or(Ok(()), std::fs::create_dir_all).map_err(ReadlineError::from);
        if let Err(error) = saved.and_then(|()| editor.save_history(file)) {
            log::warn!("{}: {error}", file.display());
        }
    }
}
