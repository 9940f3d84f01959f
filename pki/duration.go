package pki

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// ParseDuration parses a positive duration. It accepts the syntax of [time.ParseDuration], such as 90s or 1h30m. A
// number of whole days may precede it, as in 7d or 1d12h.
func ParseDuration(text string) (time.Duration, error) {
	d, ok := parseDays(text)
	if !ok || d <= 0 {
		return 0, fmt.Errorf("%.40q is not a duration: give a number above zero with its unit, such as 30s, 12h or 7d", text)
	}
	return d, nil
}

// FormatDuration returns a duration in the largest unit that divides it, in the format of [ParseDuration].
func FormatDuration(d time.Duration) string {
	for _, unit := range []struct {
		of   time.Duration
		name string
	}{{24 * time.Hour, "d"}, {time.Hour, "h"}, {time.Minute, "m"}} {
		if d%unit.of == 0 {
			return strconv.FormatInt(int64(d/unit.of), 10) + unit.name
		}
	}
	return d.String()
}

func parseDays(text string) (time.Duration, bool) {
	digits, rest, hasDays := strings.Cut(text, "d")
	if !hasDays {
		d, err := time.ParseDuration(text)
		return d, err == nil
	}
	const day = 24 * time.Hour
	days, err := strconv.ParseUint(digits, 10, 31)
	if err != nil || days > uint64((1<<63-1)/day) {
		return 0, false
	}
	d := time.Duration(days) * day
	if rest == "" {
		return d, true
	}
	more, err := time.ParseDuration(rest)
	return d + more, err == nil && more >= 0 && d+more >= d
}
