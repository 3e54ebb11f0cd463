//! What a mistyped name may have meant.

/// How alike two names are at least, from 0 to 1, for one to be taken for the other.
const ALIKE: f64 = 0.75;

/// `, did you mean NAME?` with the one of `names` that resembles `name` most, or `;` if none does. Capitals and
/// hyphens make no difference.
pub fn did_you_mean<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    let plain = |name: &str| name.to_lowercase().replace(['-', '_', ' '], "");
    let likeness = |candidate: &str| strsim::jaro(&plain(name), &plain(candidate));
    // Of equals the first.
    let nearest = names
        .into_iter()
        .map(|candidate| (likeness(candidate), candidate))
        .reduce(|best, candidate| if candidate.0 > best.0 { candidate } else { best });
    match nearest.filter(|(likeness, _)| *likeness > ALIKE) {
        Some((_, candidate)) => format!(", did you mean {candidate}?"),
        None => ";".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::did_you_mean;

    #[test]
    fn the_nearest_name_is_suggested_if_one_is_near() {
        let models = ["unet", "residual-unet", "rar-unet"];
        for (typed, meant) in [("U-Net", "unet"), ("rar_unet", "rar-unet"), ("rar-nuet", "rar-unet")] {
            assert_eq!(did_you_mean(typed, models), format!(", did you mean {meant}?"));
        }
        assert_eq!(did_you_mean("transformer", models), ";");
        assert_eq!(did_you_mean("20", ["1", "2", "3"]), ", did you mean 2?");
        assert_eq!(did_you_mean("l33", ["L2", "L3", "L4"]), ", did you mean L3?");
        assert_eq!(did_you_mean("L9", ["L2", "L3", "L4"]), ";");
        assert_eq!(did_you_mean("x", []), ";");
    }
}
