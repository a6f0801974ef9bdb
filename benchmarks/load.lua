-- For wrk: requests of one kind, and what became of them as a line of JSON.
-- Arguments: the kind, how many items there are, and what the keys of this run begin with.
local JSON, NUMBERS = "application/json", 7919 -- a prime, so that all items have their turn
local items, keys, number, created = 0, "", 0, {}

local function next_id()
  number = number + 1
  return number * NUMBERS % items + 1
end

local function item()
  return string.format(
    '{"name":"item %d","description":"A thing of brass, as it is described in the catalogue","price":"12.50","quantity":3}',
    number)
end

local function send(method, path, body, keyed)
  number = number + 1
  local headers = { ["Content-Type"] = body and JSON, ["Idempotency-Key"] = keyed and keys .. number or nil }
  return wrk.format(method, path, headers, body)
end

local KINDS = {
  find = function() return wrk.format("GET", "/api/items/" .. next_id()) end,
  post = function() return send("POST", "/api/items", item()) end,
  put = function() return send("PUT", "/api/items/" .. next_id(), item(), true) end,
  patch = function() return send("PATCH", "/api/items/" .. next_id(), '{"quantity":4}', true) end,
  batch = function()
    return send("POST", "/api/items/batch", '{"items":[' .. string.rep(item() .. ",", 9) .. item() .. "]}", true)
  end,
  remove = function()
    local id = table.remove(created)
    if id then return send("DELETE", "/api/items/" .. id, nil, true) end
    return send("POST", "/api/items", item(), true)
  end,
}

function init(arguments)
  items, keys = tonumber(arguments[2]), arguments[3]
  request = KINDS[arguments[1]] -- nil for `get`: the same path each time
  if arguments[1] == "remove" then
    response = function(status, headers, body)
      local id = body:match('^{"id":(%d+)')
      if id then table.insert(created, id) end
    end
  end
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests":%d,"seconds":%f,"p50":%f,"p99":%f,"statuses":%d,"timeouts":%d,"broken":%d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.status, errors.timeout, errors.connect + errors.read + errors.write))
end
