//! Pictures, curves and the report: what they show, and that nothing in them breaks a page or leaves it.

mod html;
mod overlay;
mod plot;
mod run;

/// Asserts that `text` is well-formed XML: tags nest, attributes are quoted and unlike each other, and every `&`
/// begins one of XML's own entities. Returns the names of the elements in their order.
#[track_caller]
fn assert_well_formed(text: &str) -> Vec<String> {
    let (mut names, mut open) = (Vec::new(), Vec::new());
    let mut rest = text;
    while let Some(start) = rest.find('<') {
        assert_entities(&rest[..start]);
        let end = rest[start..].find('>').expect("a tag ends") + start;
        let tag = &rest[start + 1..end];
        rest = &rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name.to_string()), "</{name}> closes what was opened last");
            continue;
        }
        let (tag, closed) = tag.strip_suffix('/').map_or((tag, false), |tag| (tag, true));
        let name = tag.split_whitespace().next().expect("a tag has a name").to_string();
        assert!(name.chars().all(|c| c.is_ascii_alphanumeric()), "<{name}>");
        assert_attributes(&tag[name.len()..]);
        names.push(name.clone());
        if !closed {
            open.push(name);
        }
    }
    assert_entities(rest);
    assert!(open.is_empty(), "still open: {open:?}");
    names
}

#[track_caller]
fn assert_attributes(mut text: &str) {
    let mut names = Vec::new();
    while !text.trim_start().is_empty() {
        assert!(text.starts_with(char::is_whitespace), "no space before {text}");
        let (name, value) = text.trim_start().split_once("=\"").expect("an attribute has a quoted value");
        let (value, after) = value.split_once('"').expect("a quote is closed");
        assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'), "attribute {name}");
        assert!(!names.contains(&name), "{name} twice");
        assert_entities(value);
        names.push(name);
        text = after;
    }
}

#[track_caller]
fn assert_entities(text: &str) {
    for (place, _) in text.match_indices('&') {
        let known = ["&amp;", "&lt;", "&gt;", "&quot;", "&#39;"];
        assert!(known.iter().any(|entity| text[place..].starts_with(entity)), "a bare & in {text:?}");
    }
}
