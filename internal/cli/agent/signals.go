package agent

import (
	"context"
	"flag"
	"io"
	"strings"

	"github.com/brevet-pki/brevet/internal/config"
	"github.com/brevet-pki/brevet/internal/service"
)

// serviceLog returns the log of the run command. The agent continues if the reader of its standard error ends. At each
// SIGHUP, the agent reads the configuration again. The caller must close the log at the end.
func (set settings) serviceLog(ctx context.Context, flags *flag.FlagSet, w io.Writer) *service.Log {
	log := service.NewLog(w, set.Log.Format, set.Log.Level)
	file, values := value(flags, "config"), keyValues("run", flags)
	service.OnHangup(ctx, service.Hangups(), func() { set.logChanges(ctx, file, values, log) })
	return log
}

// logChanges logs which configuration keys changed and take effect at the next start. The agent reloads no key. It
// reads credentials and tokens, which also change, whenever it uses them.
func (set settings) logChanges(ctx context.Context, file string, values []config.Value, log *service.Log) {
	if file == "" {
		log.WarnContext(ctx, "nothing is reloaded: the agent runs without a configuration file, and its flags wait for a restart")
		return
	}
	next, err := loadSettings(file, values)
	if err != nil {
		log.ErrorContext(ctx, "reloading the configuration failed, the one before still applies", "error", err)
		return
	}
	log.WarnContext(ctx, "nothing is reloaded: changed keys wait for a restart", "keys", strings.Join(config.Changed(set, next), ","))
}
