package agent

import (
	"context"
	"flag"
	"io"
	"strings"

	"github.com/brevet-pki/brevet/internal/config"
	"github.com/brevet-pki/brevet/internal/service"
)

// serviceLog returns the log of the run command, which outlives the reader of standard error, and has SIGHUP read the
// configuration again. The caller closes the log at the end.
func (set settings) serviceLog(ctx context.Context, flags *flag.FlagSet, w io.Writer) *service.Log {
	log := service.NewLog(w, set.LogFormat, config.LogLevel(0))
	service.OnHangup(ctx, service.Hangups(), func() { set.sayChanged(ctx, value(flags, "config"), value(flags, "token-file"), log) })
	return log
}

// sayChanged logs which keys of the configuration wait for a restart. The agent reloads none of them: credentials and tokens,
// which do change, are read when they are needed.
func (set settings) sayChanged(ctx context.Context, file, flagged string, log *service.Log) {
	if file == "" {
		log.WarnContext(ctx, "nothing is reloaded: the agent runs without a configuration file, and its flags wait for a restart")
		return
	}
	next, err := loadSettings(file)
	if err != nil {
		log.ErrorContext(ctx, "reloading the configuration failed, the one before still applies", "error", err)
		return
	}
	if flagged != "" {
		next.TokenFile = set.TokenFile
	}
	log.WarnContext(ctx, "nothing is reloaded: changed keys wait for a restart", "keys", strings.Join(config.Changed(set, next), ","))
}
