// Trades, bars and order updates with alpaca-trade-api-go 3.
//
// Install: go mod init example && go get github.com/alpacahq/alpaca-trade-api-go/v3@v3.9.0
// Run:     go run .
// Change:  the three variables, or set them in the environment. The defaults are the demo's: ../README.md.
//
// The stream takes the URL without the feed. Order updates come as server-sent events, from an alpaca.Client of their
// own: REST calls go to Alpaca, with Alpaca's own key and another client.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strings"

	"github.com/alpacahq/alpaca-trade-api-go/v3/alpaca"
	"github.com/alpacahq/alpaca-trade-api-go/v3/marketdata"
	"github.com/alpacahq/alpaca-trade-api-go/v3/marketdata/stream"
)

var (
	url    = setting("ALPACA_PROXY_URL", "ws://127.0.0.1:8765")
	key    = setting("ALPACA_PROXY_KEY", "momentum")
	secret = setting("ALPACA_PROXY_SECRET", "momentum")
)

func setting(name, preset string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return preset
}

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt)
	defer cancel()

	orders := alpaca.NewClient(alpaca.ClientOpts{
		APIKey: key, APISecret: secret, BaseURL: strings.Replace(url, "ws", "http", 1),
	})
	orders.StreamTradeUpdatesInBackground(ctx, func(update alpaca.TradeUpdate) {
		fmt.Println("order", update.Event, update.Order.ClientOrderID)
	})

	stocks := stream.NewStocksClient(
		marketdata.IEX,
		stream.WithBaseURL(url+"/v2"),
		stream.WithCredentials(key, secret),
		stream.WithTrades(func(trade stream.Trade) { fmt.Println("trade", trade.Symbol, trade.Price) }, "AAPL", "MSFT"),
		stream.WithBars(func(bar stream.Bar) { fmt.Println("bar", bar.Symbol, bar.Close) }, "*"),
	)
	if err := stocks.Connect(ctx); err != nil {
		log.Fatal(err)
	}
	if err := <-stocks.Terminated(); err != nil {
		log.Fatal(err)
	}
}
