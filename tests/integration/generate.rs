//! Tokenizer, streams of text and their ends, against the fixtures and by their own rules.

use std::path::PathBuf;
use std::sync::LazyLock;
use std::sync::atomic::AtomicBool;

use fasq::backend::cpu::Cpu;
use fasq::checkpoint::Assets;
use fasq::generate::{
    Completion, Decoder, Generator, Limits, Sampler, Sampling, Stats, StopReason, StopStrings, Tokenizer,
};
use fasq::model::{Model, Source};
use proptest::prelude::*;

use crate::fixture::{Fixture, fixture, fixtures, ids};

/// The pieces of a stream of ids, the held-back rest last.
fn pieces(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
    let mut decoder = Decoder::new(tokenizer);
    let mut pieces: Vec<_> = ids.iter().map(|&id| decoder.push(id).unwrap()).collect();
    pieces.push(decoder.finish().unwrap());
    pieces
}

#[test]
fn tokenizer_cases() {
    for fixture in fixtures() {
        let tokenizer = fixture.tokenizer();
        let cases = fixture.prompts["tokenizer_cases"].as_array().unwrap();
        assert!(cases.len() > 10);
        for case in cases {
            let text = case["text"].as_str().unwrap();
            let at = format!("{}: {text:?}", fixture.name);
            let with_special = tokenizer.encode(text, true).unwrap();
            assert_eq!(with_special, ids(&case["ids"]), "{at}");
            assert_eq!(tokenizer.encode(text, false).unwrap(), ids(&case["ids_no_special"]), "{at}");
            assert_eq!(tokenizer.decode(&with_special, false).unwrap(), case["decoded"], "{at}");
            assert_eq!(tokenizer.decode(&with_special, true).unwrap(), case["decoded_skip_special"], "{at}");
            assert_eq!(pieces(&tokenizer, &with_special).concat(), case["decoded_skip_special"], "{at}");
        }
    }
}

#[test]
fn begin_of_text_is_detected() {
    assert!(fixture("llama32-tiny-tied").tokenizer().adds_bos());
    assert!(!fixture("qwen3-tiny").tokenizer().adds_bos());
}

#[test]
fn ids_beyond_the_model_are_an_error() {
    let fixture = fixture("qwen3-tiny");
    let json = fixture.assets.tokenizer.as_ref().unwrap();
    assert_eq!(Tokenizer::new(json, 485).unwrap().len(), 485);
    let error = Tokenizer::new(json, 484).err().unwrap().to_string();
    assert_eq!(error, "tokenizer.json: expected ids below the model's vocabulary of 484, found id 484");
}

#[test]
fn damaged_tokenizers_are_an_error() {
    let fixture = fixture("qwen3-tiny");
    let json = fixture.assets.tokenizer.as_ref().unwrap();
    for damaged in ["", "{}", "[]", "null", r#"{"version":"1.0"}"#, &json[..json.len() / 2], &json[1..]] {
        let error = Tokenizer::new(damaged, 520).err().unwrap().to_string();
        assert!(error.starts_with("tokenizer.json: ") && !error.contains('\n'), "{error}");
    }
}

/// What the tokenizers crate would panic at.
#[test]
fn templates_that_name_what_is_not_there_are_an_error() {
    let fixture = fixture("llama3-tiny-sharded");
    let json = fixture.assets.tokenizer.as_ref().unwrap();
    let mut file: serde_json::Value = serde_json::from_str(json).unwrap();
    let template = &mut file["post_processor"]["processors"][1];
    assert_eq!(template["type"], "TemplateProcessing");
    let whole = template["single"].clone();
    let fails = |file: &serde_json::Value| Tokenizer::new(&file.to_string(), 512).err().unwrap().to_string();
    template["single"][0]["SpecialToken"]["id"] = "<|begin_of_texu|>".into();
    let error = fails(&file);
    assert!(error.contains("post_processor") && error.contains("<|begin_of_texu|>"), "{error}");
    let template = &mut file["post_processor"]["processors"][1];
    template["single"] = whole;
    template["single"][1]["Sequence"]["id"] = "B".into();
    assert!(fails(&file).contains("a second"));
}

#[test]
fn half_a_character_is_held_back() {
    let tokenizer = fixture("llama32-tiny-tied").tokenizer();
    let text = "ok 🙂 naïve 中文 e\u{301}.";
    let ids = tokenizer.encode(text, false).unwrap();
    assert!(ids.len() > text.chars().count(), "characters of several tokens");
    for piece in pieces(&tokenizer, &ids) {
        assert!(!piece.contains(char::REPLACEMENT_CHARACTER));
    }
    for cut in 0..ids.len() {
        let all = pieces(&tokenizer, &ids[..cut]);
        assert_eq!(all.concat(), tokenizer.decode(&ids[..cut], true).unwrap());
        assert!(text.starts_with(&all[..cut].concat()), "only whole characters before the end");
    }
}

#[test]
fn bytes_that_are_no_text_do_not_stall_the_stream() {
    let tokenizer = fixture("llama32-tiny-tied").tokenizer();
    // Of "🙂", four tokens of one byte each: the three that continue a character never begin one.
    let smile = tokenizer.encode("🙂", false).unwrap();
    assert_eq!(smile.len(), 4);
    let stray = vec![smile[1]; 100];
    let pieces = pieces(&tokenizer, &stray);
    assert!(pieces[..99].concat().chars().count() >= 98);
    assert_eq!(pieces.concat(), tokenizer.decode(&stray, true).unwrap());
}

/// A fixture's tokenizer, read once for many cases.
static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| fixture("llama32-tiny-tied").tokenizer());

proptest! {
    /// Any ids, text or not: the pieces joined are the decoded whole.
    #[test]
    fn pieces_are_the_whole(ids in prop::collection::vec(0u32..512, 0..60)) {
        prop_assert_eq!(pieces(&TOKENIZER, &ids).concat(), TOKENIZER.decode(&ids, true).unwrap());
    }

    /// However a text is cut into pieces, it ends before the first stop string.
    #[test]
    fn stop_strings_are_found_across_pieces(cuts in prop::collection::vec("[ab]{0,4}", 0..12)) {
        let text = cuts.concat();
        let mut stops = StopStrings::new(vec!["abba".into(), "bbb".into()]).unwrap();
        let (mut seen, mut stopped) = (String::new(), false);
        for piece in &cuts {
            let mut piece = piece.clone();
            stopped = stops.push(&mut piece, None);
            seen += &piece;
            if stopped { break }
        }
        let end = ["abba", "bbb"].iter().filter_map(|stop| text.find(stop)).min();
        prop_assert_eq!(stopped, end.is_some());
        if !stopped { seen += &stops.finish() }
        prop_assert_eq!(&seen, &text[..end.unwrap_or(text.len())]);
    }
}

#[test]
fn a_possible_stop_string_is_held_back() {
    let mut stops = StopStrings::new(vec!["\nUser:".into()]).unwrap();
    let mut push = |text: &str| {
        let mut piece = text.to_string();
        let stopped = stops.push(&mut piece, None);
        (piece, stopped)
    };
    assert_eq!(push("Hi"), ("Hi".into(), false));
    assert_eq!(push("!\nUs"), ("!".into(), false));
    assert_eq!(push("eful"), ("\nUseful".into(), false));
    assert_eq!(push("\nUser"), ("".into(), false));
    assert_eq!(push(": 1"), ("".into(), true));
    assert!(StopStrings::new(vec![String::new()]).is_err());
}

#[test]
fn a_stop_string_may_have_special_tokens() {
    let mut stops = StopStrings::new(vec!["<|im_end|>\n<|im_start|>user".into(), "im".into()]).unwrap();
    let mut push = |text: &str, special: Option<&str>| {
        let mut piece = text.to_string();
        let stopped = stops.push(&mut piece, special);
        (piece, stopped)
    };
    // Of no stop string.
    assert_eq!(push("a", Some("<|x|>")), ("a".into(), false));
    // The beginning of one that goes on otherwise; "im" is not a part of a special token.
    assert_eq!(push("b", Some("<|im_end|>")), ("b".into(), false));
    assert_eq!(push("\nc", None), ("\nc".into(), false));
    assert_eq!(push("d", Some("<|im_end|>")), ("d".into(), false));
    assert_eq!(push("\n", Some("<|im_start|>")), ("".into(), false));
    assert_eq!(push("user: hi", None), ("".into(), true));
}

/// Where no file names it, a special token that is known by its name ends a text; or the one that tokenizer_config.json names.
#[test]
fn a_tokenizer_knows_what_ends_a_text() {
    let Fixture { assets, config, .. } = fixture("llama32-tiny-tied");
    let named = |tokenizer_config: Option<&str>| {
        let assets = Assets { tokenizer_config: tokenizer_config.map(str::to_owned), ..assets.clone() };
        let tokenizer = Tokenizer::of(&assets, config.vocab).unwrap();
        tokenizer.ends().iter().map(|id| tokenizer.token(*id).unwrap()).collect::<Vec<_>>()
    };
    let known = named(None);
    assert!(known.contains(&"<|eot_id|>".to_owned()), "{known:?}");
    let begin = "<|begin_of_text|>";
    for text in
        [format!(r#"{{"eos_token": "{begin}"}}"#), format!(r#"{{"eos_token": {{"content": "{begin}"}}}}"#)]
    {
        assert_eq!(named(Some(&text)).last().unwrap(), begin);
    }
    assert_eq!(named(Some("{}")), known);
    let tokenizer = fixture("llama32-tiny-tied").tokenizer();
    let limits = Limits { tokens: None, stop: vec![] };
    let mut completion = Completion::new(&tokenizer, &[], limits).unwrap();
    completion.push(tokenizer.id("<|eot_id|>").unwrap()).unwrap();
    assert_eq!(completion.reason(), Some(StopReason::EndOfText));
}

/// A tokenizer of single bytes, as converted from SentencePiece.
fn byte_tokenizer() -> Tokenizer {
    let mut vocab: serde_json::Map<String, serde_json::Value> =
        (0..256).map(|byte| (format!("<0x{byte:02X}>"), byte.into())).collect();
    vocab.insert("a".into(), 256.into());
    vocab.insert("\u{2581}".into(), 257.into());
    vocab.insert("</s>".into(), 258.into());
    let json = serde_json::json!({
        "version": "1.0", "normalizer": null, "pre_tokenizer": null, "post_processor": null,
        "added_tokens": [{"id": 258, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}],
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": true, "unk_token": null},
    });
    Tokenizer::new(&json.to_string(), 259).unwrap()
}

#[test]
fn byte_tokens_are_streamed_as_characters() {
    let tokenizer = byte_tokenizer();
    let ids: Vec<u32> = "a😀中a".bytes().map(|byte| if byte == b'a' { 256 } else { byte.into() }).collect();
    let streamed = pieces(&tokenizer, &ids);
    assert_eq!(streamed.concat(), "a😀中a");
    assert!(streamed.contains(&"😀中a".to_owned()), "{streamed:?}");
    // A run that is not UTF-8 as a whole is a U+FFFD for each byte, the newline that began it too.
    assert_eq!(pieces(&tokenizer, &[256, 0x0a, 0xe2, 256]).concat(), "a\u{fffd}\u{fffd}a");
    // A special token is no part of the text, so that it does not end a run either.
    assert_eq!(pieces(&tokenizer, &[0xe4, 258, 0xb8, 258, 0xad]).concat(), "中");
}

static BYTE_TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(byte_tokenizer);

proptest! {
    #[test]
    fn pieces_of_byte_tokens_are_the_whole(
        ids in prop::collection::vec(prop_oneof![Just(0x0a), 0x80u32..0xff, 256u32..259], 0..40)
    ) {
        prop_assert_eq!(pieces(&BYTE_TOKENIZER, &ids).concat(), BYTE_TOKENIZER.decode(&ids, true).unwrap());
    }
}

#[test]
fn a_text_ends_for_its_reason() {
    let fixture = fixture("llama32-tiny-tied");
    let tokenizer = fixture.tokenizer();
    let run = |limits: Limits, text: &str| {
        let mut completion = Completion::new(&tokenizer, &fixture.config.eos, limits).unwrap();
        let mut out = String::new();
        for id in tokenizer.encode(text, false).unwrap() {
            if completion.reason().is_some() {
                break;
            }
            out += &completion.push(id).unwrap();
        }
        if completion.reason().is_none() {
            out += &completion.end(StopReason::Context).unwrap();
        }
        (out, completion.reason().unwrap())
    };
    let stop = |s: &str| Limits { stop: vec![s.into()], ..Limits::default() };
    let tokens = |n| Limits { tokens: Some(n), ..Limits::default() };
    assert_eq!(run(Limits::default(), "a b<|eot_id|>c"), ("a b".into(), StopReason::EndOfText));
    assert_eq!(run(Limits::default(), "a b c"), ("a b c".into(), StopReason::Context));
    assert_eq!(run(stop(" c"), "a b c d"), ("a b".into(), StopReason::StopString));
    assert_eq!(
        run(stop(" cd"), "a b c"),
        ("a b c".into(), StopReason::Context),
        "what was held back is given"
    );
    assert_eq!(run(tokens(0), "a b"), ("".into(), StopReason::Tokens));
    assert_eq!(run(tokens(2), "🙂").0, "\u{fffd}", "an unfinished character is shown at the end");
    let cut_off = Limits { tokens: Some(1), stop: vec!["z".into()] };
    assert_eq!(run(cut_off, "a<|eot_id|>"), ("a".into(), StopReason::Tokens));
}

/// A greedy text after `prompt`: the text, why it ended, what it took.
fn write(generator: &mut Generator<'_, Cpu>, prompt: &[u32], tokens: usize) -> (String, StopReason, Stats) {
    let mut sampler = Sampler::new(Sampling::greedy()).unwrap();
    let limits = Limits { tokens: Some(tokens), stop: Vec::new() };
    let mut stream = generator.stream(prompt, &mut sampler, limits, None).unwrap();
    let text = stream.by_ref().collect::<fasq::Result<String>>().unwrap();
    (text, stream.reason().unwrap(), stream.stats())
}

#[test]
fn a_prompt_is_not_read_twice() {
    // Attention can drop the tokens that differ; a delta net keeps all or nothing.
    for (name, rewinds) in [("llama32-tiny-tied", true), ("qwen35-tiny", false)] {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
        let source = Source::open(&folder).unwrap();
        let model = Model::load(Cpu, &source).unwrap();
        let tokenizer = fixture(name).tokenizer();
        let ids = |text: &str| tokenizer.encode(text, false).unwrap();
        let (first, other) =
            (ids("copyright notice and this permission"), ids("copyright notice and the source"));
        let shared = first.iter().zip(&other).take_while(|(a, b)| a == b).count();
        assert!(shared > 2);

        let mut generator = Generator::new(&model, &tokenizer, 256).unwrap();
        let (text, reason, stats) = write(&mut generator, &first, 5);
        assert_eq!(
            (reason, stats.prompt_tokens, stats.generated_tokens),
            (StopReason::Tokens, first.len(), 5)
        );
        let (again, _, _) = write(&mut generator, &first, 5);
        assert_eq!(again, text);
        let (text, _, stats) = write(&mut generator, &other, 5);
        let read = if rewinds { other.len() - shared } else { other.len() };
        assert_eq!(stats.prompt_tokens, read, "{name}");
        let mut fresh = Generator::new(&model, &tokenizer, 256).unwrap();
        assert_eq!(write(&mut fresh, &other, 5).0, text, "{name}");
    }
}

#[test]
fn contexts_and_cancelling_end_a_stream() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/qwen3-tiny");
    let model = Model::load(Cpu, &Source::open(&folder).unwrap()).unwrap();
    let tokenizer = fixture("qwen3-tiny").tokenizer();
    let mut generator = Generator::new(&model, &tokenizer, 8).unwrap();
    let (_, reason, stats) = write(&mut generator, &[75, 298, 68], 100);
    // Eight tokens fit, and the logits after the eighth draw one more.
    assert_eq!((reason, stats.generated_tokens), (StopReason::Context, 6));
    let (_, reason, stats) = write(&mut generator, &[68; 8], 100);
    assert_eq!((reason, stats.generated_tokens), (StopReason::Context, 1));

    let mut sampler = Sampler::new(Sampling::greedy()).unwrap();
    let too_long = generator.stream(&[68; 9], &mut sampler, Limits::default(), None).err().unwrap();
    assert_eq!(too_long.to_string(), "prompt: expected at most 8 tokens, the context, found 9 tokens");
    assert!(generator.stream(&[], &mut sampler, Limits::default(), None).is_err());

    let cancel = AtomicBool::new(true);
    let mut stream = generator.stream(&[68], &mut sampler, Limits::default(), Some(&cancel)).unwrap();
    assert!(stream.next().is_none());
    assert_eq!(stream.reason(), Some(StopReason::Cancelled));
}
