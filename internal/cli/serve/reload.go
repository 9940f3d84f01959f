package serve

import (
	"context"
	"strings"

	"github.com/brevet-pki/brevet/internal/cli/node"
	"github.com/brevet-pki/brevet/internal/config"
	"github.com/brevet-pki/brevet/internal/service"
	"github.com/brevet-pki/brevet/server"
)

// reloader applies changes of the configuration to a running server.
type reloader struct {
	current node.Config // configuration that is in effect
	load    func() (node.Config, error)
	log     *service.Log
	server  *server.Server
}

// reload reads the configuration again, and applies the log level and the rate limits. It logs which changed keys are
// now in effect, and which take effect only after a restart. If the configuration is invalid, reload changes nothing.
func (r *reloader) reload(ctx context.Context) {
	next, err := r.load()
	if err == nil {
		err = r.server.SetLimits(next.Limits())
	}
	if err != nil {
		r.log.ErrorContext(ctx, "reloading the configuration failed, the one before still applies", "error", err)
		return
	}
	var applied, waiting []string
	for _, key := range config.Changed(r.current, next) {
		if key == "log.level" || strings.HasPrefix(key, "rate_limits.") {
			applied = append(applied, key)
		} else {
			waiting = append(waiting, key)
		}
	}
	r.log.SetLevel(next.Log.Level)
	r.current.RateLimits, r.current.Log.Level = next.RateLimits, next.Log.Level
	if len(waiting) == 0 {
		r.log.InfoContext(ctx, "the configuration was reloaded", "applied", strings.Join(applied, ","))
		return
	}
	r.log.WarnContext(ctx, "the configuration was reloaded, but for keys that wait for a restart",
		"applied", strings.Join(applied, ","), "need_restart", strings.Join(waiting, ","))
}
