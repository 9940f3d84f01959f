package recovery_test

import (
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ra/recovery"
)

func TestNewChecksItsConfig(t *testing.T) {
	for name, c := range map[string]struct {
		config recovery.Config
		valid  bool
	}{
		"a grace and a number":    {recovery.Config{Grace: time.Hour, Times: 1}, true},
		"the greatest number":     {recovery.Config{Grace: time.Hour, Times: recovery.MaxTimes}, true},
		"no grace":                {recovery.Config{Times: 1}, false},
		"a negative grace":        {recovery.Config{Grace: -time.Hour, Times: 1}, false},
		"no number":               {recovery.Config{Grace: time.Hour}, false},
		"a number that is higher": {recovery.Config{Grace: time.Hour, Times: recovery.MaxTimes + 1}, false},
	} {
		if _, err := recovery.New(c.config); (err == nil) != c.valid {
			t.Errorf("%s: %v", name, err)
		}
	}
}
