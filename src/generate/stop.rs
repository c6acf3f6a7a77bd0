//! Stop strings over a stream: text is held back while it could still become one.

/// Watches streamed text for stop strings.
#[derive(Debug)]
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
}

/// What may be shown after a piece of text arrived.
#[derive(Debug, PartialEq, Eq)]
pub enum Watched {
    /// This much; the rest could still be part of a stop string.
    Text(String),
    /// This much, and then a stop string began: the end.
    Stopped(String),
}

impl StopStrings {
    /// Watches for any of `stops`, none of them empty.
    pub fn new(stops: &[String]) -> StopStrings {
        StopStrings { stops: stops.to_vec(), held: String::new() }
    }

    /// Takes the next piece.
    pub fn push(&mut self, text: &str) -> Watched {
        self.held.push_str(text);
        let first = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(at) = first {
            self.held.truncate(at);
            return Watched::Stopped(std::mem::take(&mut self.held));
        }
        let keep = self.held.len() - self.could_begin_a_stop();
        let rest = self.held.split_off(keep);
        Watched::Text(std::mem::replace(&mut self.held, rest))
    }

    /// What was held back, at the end of the text.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Length of the longest end of the held text that is the beginning of a stop string.
    fn could_begin_a_stop(&self) -> usize {
        let held = self.held.as_bytes();
        let longest = |stop: &String| {
            let stop = stop.as_bytes();
            (1..stop.len().min(held.len() + 1)).rev().find(|&n| held.ends_with(&stop[..n])).unwrap_or(0)
        };
        self.stops.iter().map(longest).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn holds_back_only_what_could_become_a_stop() {
        let mut watch = StopStrings::new(&["END".into(), "é!".into()]);
        assert_eq!(watch.push("a E"), Watched::Text("a ".into()));
        assert_eq!(watch.push("N"), Watched::Text("".into()));
        assert_eq!(watch.push("T é"), Watched::Text("ENT ".into()));
        assert_eq!(watch.push("!x"), Watched::Stopped("".into()));
    }

    proptest! {
        #[test]
        fn shows_everything_before_the_first_stop(pieces in prop::collection::vec("[abé]{0,3}", 0..12)) {
            let stops = ["ab".to_owned(), "bé".to_owned(), "aaa".to_owned()];
            let whole: String = pieces.concat();
            let end = stops.iter().filter_map(|s| whole.find(s.as_str())).min();
            let mut watch = StopStrings::new(&stops);
            let mut shown = String::new();
            let mut stopped = false;
            for piece in &pieces {
                match watch.push(piece) {
                    Watched::Text(t) => shown += &t,
                    Watched::Stopped(t) => { shown += &t; stopped = true; break; }
                }
            }
            if !stopped { shown += &watch.finish(); }
            prop_assert_eq!(stopped, end.is_some());
            // Streaming may complete a longer stop before an earlier-beginning one: what is shown is a stop-free prefix.
            let expected = &whole[..end.unwrap_or(whole.len())];
            prop_assert!(expected.starts_with(&shown) || shown.starts_with(expected));
            prop_assert!(stops.iter().all(|s| !shown.contains(s.as_str())));
        }
    }
}
