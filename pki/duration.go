package pki

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// ParseDuration reads a positive duration as people write lifetimes: 90s, 24h, 1h30m, or whole days such as 7d.
func ParseDuration(text string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(text, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		if err == nil && n > 0 {
			return time.Duration(n) * 24 * time.Hour, nil
		}
	} else if d, err := time.ParseDuration(text); err == nil && d > 0 {
		return d, nil
	}
	return 0, fmt.Errorf("pki: %q is not a duration: write it like 90s, 24h or 7d", text)
}
