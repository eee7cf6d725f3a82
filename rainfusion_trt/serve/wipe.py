"""Two videos one over the other, and a slider that wipes between them, for `gradio.HTML`."""

from __future__ import annotations

STYLE = """
.wipe { max-width: 48rem }
.wipe-films { position: relative; line-height: 0 }
.wipe-films video { width: 100% }
.wipe-films video + video {
  position: absolute; inset: 0; height: 100%;
  clip-path: inset(0 calc(100% - var(--wiped, 50%)) 0 0);
}
.wipe input { width: 100%; margin: 0.5rem 0 }
.wipe p { display: flex; justify-content: space-between }
"""

# Listens to the element around, which stays, and not to the videos, which come later: events of
# media do not bubble but are captured. The lower video follows the upper one, also to the start.
SCRIPT = """
const videosOf = (part) => part.closest(".wipe")?.querySelectorAll("video") ?? [];
const follow = ({target}) => {
  const [lower, upper] = videosOf(target);
  if (target !== upper) return;
  if (Math.abs(lower.currentTime - upper.currentTime) > (upper.paused ? 0 : 0.05))
    lower.currentTime = upper.currentTime;
  if (upper.paused) lower.pause();
  else if (lower.paused && !lower.ended) lower.play().catch(() => {});
  target.closest(".wipe").querySelector("button").textContent = upper.paused ? "Play" : "Pause";
};
for (const name of ["play", "playing", "pause", "seeking", "seeked", "timeupdate"])
  element.addEventListener(name, follow, true);
// No `autoplay`: in what a script puts into a page `muted` is ignored, and sound would be refused.
element.addEventListener("loadeddata", ({target}) => {
  if (target !== videosOf(target)[1]) return;
  target.muted = true;
  target.play().catch(() => {});
}, true);
element.addEventListener("input", ({target}) => {
  target.closest(".wipe")?.style.setProperty("--wiped", `${target.value}%`);
});
element.addEventListener("click", ({target}) => {
  if (!target.matches(".wipe button")) return;
  const [, upper] = videosOf(target);
  if (upper.paused) upper.play().catch(() => {});
  else upper.pause();
});
"""


def wipe(left: str, right: str) -> str:
    """The HTML of a sparse video on the left of the slider and a dense one on the right.

    Parameters
    ----------
    left, right
        Addresses of the sparse and of the dense video, without characters that HTML would read.
    """
    return (
        '<div class="wipe"><div class="wipe-films">'
        f'<video muted playsinline preload="auto" src="{right}"></video>'
        f'<video muted playsinline preload="auto" loop src="{left}"></video></div>'
        '<input type="range" min="0" max="100" step="any" value="50"'
        ' aria-label="How much of the sparse video is seen">'
        f'<p><a href="{left}">sparse</a><button type="button">Play</button>'
        f'<a href="{right}">dense</a></p></div>'
    )
